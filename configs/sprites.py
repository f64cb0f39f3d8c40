"""Pictures of objects from sentences: a small Stable Diffusion for two cores.

    python -m vdm_jax.data latents --config=configs/sprites.py \
        --autoencoder=models/autoencoder --out=runs/sprites_latents --num_clips=80000
    python train.py --config=configs/sprites.py --workdir=runs/sprites \
        --config.data.path=runs/sprites_latents
    python sample.py --workdir=runs/sprites --prompt="a rocket on a red background" \
        --out=out

Stills of 64x64 of 200 objects, "a rocket on a dark blue background", as latents of
16x16 by models/autoencoder. The U-Net, its text condition and its timesteps are Stable
Diffusion's, at a width of 64 and 128; the text encoder is MiniLM. A quarter of the
pairs of object and background is never trained on. The first command is optional:
without stored latents every batch is encoded.

`:clips` adds layers that mix frames and read the text to models/sprites and trains
them alone, on moving sprites of 24 objects. They start as the identity, so that a clip
begins as pictures:

    python train.py --config=configs/sprites.py:clips --workdir=runs/sprites_clips

Variants: `:clips`, of which forty updates were run; `:smoke` and `:clips_smoke`, which
take seconds and have no autoencoder. Result: models/sprites.
"""

from ml_collections import ConfigDict

from configs.base import base

VARIANTS = ("", "clips", "smoke", "clips_smoke")
# New layers of a model of clips: the trained cross-attention has seen no direction.
CLIP_LAYERS = ("cross_attention", "temporal_conv", "temporal_attention")
# Their parameters. A spatial transformer's block has a cross_attention of its own.
NEW = rf".*(?<!/block)/({'|'.join(CLIP_LAYERS)})/.*"
SPACE = "spatial_transformer"


def get_config(variant: str = "") -> ConfigDict:
    """Return the locked config of a variant."""
    config = base()
    config.video.update(frames=1, height=64, width=64, fps=8)
    config.data.update(
        source="sprites",
        path="everyday",
        label_vocabulary=(),
        text_embeddings_dir="runs/sprites_text",
        batch_size=64,
    )
    config.codec.update(kind="autoencoder", path="models/autoencoder")
    config.network = dict(
        kind="sd",
        # Only one pixel in four attends: a third of the time of attention everywhere.
        levels=(
            dict(channels=64, blocks=1),
            dict(channels=128, blocks=1, layers=(SPACE,)),
        ),
        mid_layers=(SPACE,),
        num_heads=(2, 4),
        norm_groups=16,
        linear_projection=True,
    )
    config.conditioning.update(
        cond_dim=256,
        cond_mlp_layers=1,
        text_dim=384,
        text_dropout=0.1,
        text_pooling=False,
    )
    config.diffusion.update(schedule="discrete", prediction_type="v")
    config.train.update(
        steps=4400,
        optimizer="muon",
        learning_rate=5e-3,
        warmup=100,
        end_lr_fraction=0.05,
        weight_decay=0.01,
        ema_decay=0.998,
        checkpoint_every=250,
        log_every=20,
        sample_every=500,
        eval_every=500,
    )
    config.sample.update(steps=32, sampler="ddim", guidance_scale=5.0, batch_size=64)
    if "smoke" in variant:
        _smoke(config)
    if "clips" in variant:
        _inflate(config)
    return config.lock()


def _inflate(config: ConfigDict) -> None:
    """Make a model of pictures one of clips, whose new layers train."""
    network = config.network
    levels = [
        {**level, "layers": (*level.get("layers", ()), *CLIP_LAYERS)}
        for level in network.levels
    ]
    network.levels = tuple(levels)
    network.mid_layers = (*network.mid_layers, *CLIP_LAYERS)
    network.head_dim = 16
    network.relative_position = "bias"
    config.video.frames = 8
    config.data.update(
        path="small", batch_size=8, text_embeddings_dir="runs/sprites_clips_text"
    )
    config.init_from = "models/sprites"
    config.init_new = (NEW,)
    config.train.trainable = ((NEW, True), (".*", False))
    config.train.steps = min(config.train.steps, 4000)


def _smoke(config: ConfigDict) -> None:
    """Set tiny sizes of this kind of network, and pixels in place of latents."""
    config.video.update(height=32, width=32)
    config.data.update(path="small", batch_size=2)
    config.codec.update(kind="identity", path="")
    config.network.update(
        levels=(
            dict(channels=16, blocks=1),
            dict(channels=32, blocks=1, layers=(SPACE,)),
        ),
        num_heads=(1, 2),
        norm_groups=4,
        patch_size=4,
    )
    config.conditioning.cond_dim = 64
    config.train.update(
        steps=4,
        warmup=1,
        checkpoint_every=2,
        log_every=2,
        sample_every=2,
        eval_every=4,
    )
    config.sample.update(num=2, steps=2, batch_size=8)
