"""A cascade like Imagen Video's for two cores: five stages, conditioned on text.

    python train.py --cascade=configs/cascade_small.py --workdir=runs/cascade

A base model, then temporal, spatial, spatial and temporal super-resolution: 4 frames of
12x16 to 16 frames of 48x64, always four seconds. Twelve of the 72 combinations of
attributes are never trained on. The base has temporal attention, the other stages
temporal convolutions. Spatial attention is at the lowest resolution only; ssr2 and tsr2
have none and are trained on crops. No independent images: experiments/cascade_ablations
has what they would improve and cost.
Variants: `:base`, `:tsr1`, `:ssr1`, `:ssr2`, `:tsr2`, and `:smoke`.
Result: cascades/shapes, its students.
"""

from ml_collections import ConfigDict

from configs.base import base, smoke
from vdm_jax.settings import section_dict
from vdm_jax.settings.sections import Stage

STAGES = ("base", "tsr1", "ssr1", "ssr2", "tsr2")
VARIANTS = (*STAGES, "smoke")
# Frames, height and width. Clips span 16 frames of the data: the stride is 16 / frames.
SIZES = {
    "base": (4, 12, 16),
    "tsr1": (8, 12, 16),
    "ssr1": (8, 24, 32),
    "ssr2": (8, 48, 64),
    "tsr2": (16, 48, 64),
}
BATCH = {"base": 16, "tsr1": 16, "ssr1": 8, "ssr2": 8, "tsr2": 4}
STEPS = {"base": 6000, "tsr1": 3000, "ssr1": 2000, "ssr2": 5000, "tsr2": 4500}
SECONDS = 4
CONV = ("temporal_conv",)


def get_config(variant: str = "base") -> ConfigDict:
    """Return the locked config of a stage."""
    stage = "ssr1" if variant == "smoke" else variant
    config = base()
    frames, height, width = SIZES[stage]
    config.video.update(frames=frames, height=height, width=width, fps=frames / SECONDS)
    config.data.update(
        source="shapes", label_vocabulary=(), batch_size=BATCH[stage],
        stride=16 // frames, held_out_combinations=12,
    )  # fmt: skip
    width = 48 if stage == "base" else 32
    frame = ("spatial_attention", "cross_attention")
    # The base has convolutions too: attention alone hardly learns directions.
    time = ("temporal_conv", "temporal_attention") if stage == "base" else CONV
    config.network.update(
        levels=(
            dict(channels=width, blocks=1, layers=time),
            dict(channels=2 * width, blocks=1, layers=(*frame, *time)),
        ),
        mid_layers=(*frame, *time),
        head_dim=width,
        patch_size=2,
        skip_downsamples=False,
        relative_position="bias",
    )
    config.conditioning.update(
        cond_dim=2 * width,
        cond_mlp_layers=2,
        text_dim=384,
        text_dropout=0.1,
        frame_index_embedding=True,
    )
    # Shapes are learned at low noise levels, directions at high ones.
    config.diffusion.update(
        logsnr_shift=-1.0, train_logsnr_shifts=(0.0, -3.0), precondition=True
    )
    if stage != "base":
        kind = stage.rstrip("12")
        config.stage = section_dict(Stage(kind, augmentation_time=(0.0, 0.5)))
        config.diffusion.update(logsnr_shift=0.0, train_logsnr_shifts=())
    if stage in ("ssr2", "tsr2"):
        config.stage.train_crop = (24, 32)
        config.network.levels[1]["layers"] = CONV
        config.network.mid_layers = CONV
    config.train.update(
        steps=STEPS[stage],
        optimizer="muon",
        learning_rate=5e-3,
        warmup=60,
        end_lr_fraction=0.05,
        weight_decay=0.01,
        ema_decay=0.997,
        checkpoint_every=250,
        log_every=20,
        sample_every=500,
        eval_every=500,
    )
    steps = 64 if stage == "base" else 32
    config.sample.update(
        steps=steps,
        sampler="ddim",
        guidance_scale=2.0,
        augmentation_snr=5.0,
        batch_size=64,
    )

    if variant == "smoke":
        smoke(config)
        config.conditioning.update(text_dim=0, text_dropout=0.0)
        config.sample.guidance_scale = 1.0
    return config.lock()
