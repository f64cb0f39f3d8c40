"""The small networks of Wan that record_wan.py records and tests repeat.

Videos are in torch's order here, [b, c, f, h, w].
"""

from pathlib import Path

from tests.parity.drawn import normal

FOLDER = Path(__file__).parent
ARRAYS = FOLDER / "wan.npz"

TRANSFORMER = dict(
    patch_size=[1, 2, 2], num_attention_heads=2, attention_head_dim=18, in_channels=4,
    out_channels=4, text_dim=20, freq_dim=16, ffn_dim=40, num_layers=2,
    cross_attn_norm=True, qk_norm="rms_norm_across_heads", eps=1e-6,
)  # fmt: skip
VAE = dict(
    base_dim=8, z_dim=4, dim_mult=[1, 2, 4, 4], num_res_blocks=1, attn_scales=[],
    temperal_downsample=[False, True, True], latents_mean=[0.1, -0.4, 0.3, 0.0],
    latents_std=[2.0, 1.5, 0.5, 1.2],
)  # fmt: skip
UMT5 = dict(
    vocab_size=48, d_model=20, d_kv=8, d_ff=40, num_layers=2, num_heads=3,
    relative_attention_num_buckets=8, relative_attention_max_distance=16,
)  # fmt: skip
TIMESTEPS = (501.0, 21.5)  # of the two videos
FRAME_TIMESTEPS = ((0.0, 501.0, 501.0), (21.5, 21.5, 999.0))
GRID = (3, 2, 3)  # tokens of the transformer's video
FEW, MANY = (1, 4, 3, 2, 3), (1, 4, 17, 1, 1)  # shapes of latents
MANY_FRAMES = [0, 1, 4, 5, 33, 64]  # those of the 65 that are recorded
# Name -> (class of the scheduler, shift, steps).
RUNS = {
    f"{name}_{shift:g}_{steps}": (kind, shift, steps)
    for name, kind, shift, steps in (
        ("unipc", "UniPCMultistepScheduler", 3.0, 1),
        ("unipc", "UniPCMultistepScheduler", 3.0, 2),
        ("unipc", "UniPCMultistepScheduler", 3.0, 3),
        ("unipc", "UniPCMultistepScheduler", 3.0, 20),
        ("unipc", "UniPCMultistepScheduler", 5.0, 8),
        ("euler", "FlowMatchEulerDiscreteScheduler", 3.0, 4),
        ("euler", "FlowMatchEulerDiscreteScheduler", 5.0, 20),
    )
}
LENGTHS = (16, 3)  # tokens of the two texts


def video():
    """Return the transformer's input."""
    f, h, w = GRID
    return normal("wan/input/video", (2, 4, f, 2 * h, 2 * w))


def tokens():
    """Return what one block reads and the rotations turn, [2, tokens, width]."""
    return normal("wan/input/tokens", (2, 18, 36))


def text():
    """Return embeddings of two texts, [2, tokens, text_dim]."""
    return normal("wan/input/text", (2, 7, 20))


def frames():
    """Return the autoencoder's input of 9 frames."""
    return normal("wan/input/frames", (1, 3, 9, 16, 24)) / 2


def stand_in(z, timestep, roll):
    """Return the velocity of a stand-in for a network; roll: by 1 along a row."""
    return (0.3 + timestep / 2000) * z + 0.25 * roll(z)


def latents(shape):
    """Return what is decoded."""
    return normal("wan/input/latents", shape)
