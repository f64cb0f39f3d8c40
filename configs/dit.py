"""Videos of objects from sentences by a diffusion transformer, for two cores.

    python train.py --config=configs/dit.py --workdir=runs/dit
    python sample.py --workdir=runs/dit --out=out \
        --prompt="a rocket on a dark blue background moves up slowly"

One model of 64x64, 48x80 and 80x48, of pictures first and then of clips too:

    python -m vdm_jax.data latents --config=configs/dit.py:packed \
        --out=runs/dit_latents --num_clips=6000
    python train.py --config=configs/dit.py:pictures --workdir=runs/dit_pictures
    python train.py --config=configs/dit.py:packed --workdir=runs/dit

Clips of 8 frames of 64x64 of 24 objects that move over a background, as latents of
16x16x4 by models/autoencoder: 512 tokens of 2x2 latents. Two pictures behind each clip
are trained on with it. Positions are rotations, the text encoder is MiniLM, and the
noise is flow matching's. A quarter of the captions is never trained on.

Every variant of the transformer has about 1.6 million parameters. "" attends to all
tokens; `:v1` has blocks of a frame's tokens and of a pixel's in turn, `:v3` has both
attentions in each block (Latte, arXiv:2401.03048). `:pictures` and `:packed` read
stored latents, in packed buffers (NaViT, arXiv:2307.06304). A picture has an eighth of
a clip's tokens: objects are learned from pictures, and then how they move.
`:unet_pictures` and `:unet` train the space-time U-Net on the same latents for as many
FLOPs, in batches of one size. `:smoke` takes seconds and has no autoencoder. Result:
not run to the end.
"""

from ml_collections import ConfigDict

from configs.base import base

VARIANTS = (
    "", "v1", "v3", "pictures", "packed", "unet_pictures", "unet", "smoke",
)  # fmt: skip
DEPTH = {"full": 4, "v1": 2, "v3": 3}


def get_config(variant: str = "") -> ConfigDict:
    """Return the locked config of a variant."""
    config = base()
    config.video.update(frames=8, height=64, width=64, fps=8)
    config.data.update(
        source="sprites",
        path="small",
        label_vocabulary=(),
        text_embeddings_dir="runs/dit_text",
        batch_size=16,
        joint_image_frames=2,
    )
    config.codec.update(kind="autoencoder", path="models/autoencoder")
    attend = variant if variant in DEPTH else "full"
    config.network = dict(
        kind="dit",
        width=128,
        depth=DEPTH[attend],
        num_heads=4,
        patch_size=2,
        attend=attend,
        positions="rope",
        cross_attention=True,
    )
    config.conditioning.update(
        cond_dim=128, cond_mlp_layers=1, text_dim=384, text_dropout=0.1
    )
    config.diffusion.update(
        schedule="flow", prediction_type="flow", loss_weighting="flow"
    )
    config.train.update(
        steps=5400,
        optimizer="muon",
        learning_rate=6e-3,
        warmup=100,
        end_lr_fraction=0.05,
        weight_decay=0.01,
        ema_decay=0.998,
        checkpoint_every=250,
        log_every=20,
        sample_every=500,
        eval_every=500,
    )
    config.sample.update(steps=32, sampler="ddim", guidance_scale=4.0, num=16)
    if variant.endswith(("packed", "pictures", "unet")):
        _packed(config, "pictures" in variant)
    if variant.startswith("unet"):
        _unet(config)
    if variant == "smoke":
        _smoke(config)
    return config.lock()


def _packed(config: ConfigDict, pictures: bool) -> None:
    """Set four buffers of clips and pictures, or of pictures alone."""
    config.data.update(latents_dir="runs/dit_latents", batch_size=4)
    config.data.joint_image_frames = 0
    if pictures:
        config.video.frames = 1
        config.data.text_embeddings_dir = "runs/dit_pictures_text"
        rows, tokens = ((1, 64, 64, 10), (1, 48, 80, 10), (1, 80, 48, 10)), 512
        config.train.steps = 6000
    else:
        clips = (8, 64, 64, 2), (8, 48, 80, 1), (8, 80, 48, 1)
        rows = *clips, (1, 64, 64, 2), (1, 48, 80, 1), (1, 80, 48, 1)
        tokens = 576
        config.init_from = "runs/dit_pictures"
        config.conditioning.clean_frames = (
            ("first", 0.1), ("last", 0.05), ("first_and_last", 0.05), ("head", 0.05),
        )  # fmt: skip
        config.train.update(steps=3400, learning_rate=3e-3)
    config.mixed_sizes = dict(rows=rows, buffer_tokens=tokens)


def _unet(config: ConfigDict) -> None:
    """Set the U-Net, and batches of one size: on average as large as the packed."""
    section = config.mixed_sizes
    turns = len(section.rows)
    section.rows = tuple((*size, turns * count) for *size, count in section.rows)
    section.buffer_tokens = 0
    config.data.batch_size = max(count for *_, count in section.rows)
    if config.init_from:
        config.init_from = "runs/dit_unet_pictures"
    attention = "spatial_attention", "cross_attention", "temporal_attention"
    config.network = base().network
    config.network.update(
        levels=(
            dict(channels=64, blocks=1, layers=("temporal_conv",)),
            dict(channels=128, blocks=1, layers=attention),
        ),
        mid_layers=attention,
        head_dim=32,
        skip_downsamples=False,
        relative_position="bias",
    )
    # The FLOPs of the packed updates (python -m experiments.dit.flops).
    config.train.steps = 1968 if config.init_from else 3781


def _smoke(config: ConfigDict) -> None:
    """Set tiny sizes of this kind of network, and pixels in place of latents."""
    config.video.update(frames=4, height=32, width=32)
    config.data.update(batch_size=2, joint_image_frames=1)
    config.codec.update(kind="identity", path="")
    config.network.update(width=32, depth=1, num_heads=2, patch_size=8)
    config.conditioning.cond_dim = 32
    config.train.update(
        steps=4,
        warmup=1,
        checkpoint_every=2,
        log_every=2,
        sample_every=2,
        eval_every=4,
    )
    config.sample.update(num=2, steps=2, batch_size=8)
