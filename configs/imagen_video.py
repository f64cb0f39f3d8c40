"""The seven models of Imagen Video (Ho et al. 2022), each trained on its own.

    python train.py --config=configs/imagen_video.py:ssr2 --config.data.path=VIDEOS ...

Not run. docs/papers.md compares every value with the paper's. Shapes, frame rates,
parameter counts, temporal layers and sampling are the paper's. Widths, blocks, the
levels with attention, batch size, joint images, learning rates and the augmentation
times are ours, as they are not published. docs/cascade.md has the parameter counts.
Variants: `:base`, `:tsr1`, `:ssr1`, `:ssr2`, `:tsr2`, `:tsr3`, `:ssr3`, and `:smoke`.
"""

from ml_collections import ConfigDict

from configs.base import base, smoke
from vdm_jax.settings import section_dict
from vdm_jax.settings.sections import Stage

STAGES = ("base", "tsr1", "ssr1", "ssr2", "tsr2", "tsr3", "ssr3")
VARIANTS = (*STAGES, "smoke")
# The paper's: frames, height, width, frames per second, factor, parameters.
PAPER = {
    "base": (16, 24, 40, 3, 1, 5.6e9),
    "tsr1": (32, 24, 40, 6, 2, 1.7e9),
    "ssr1": (32, 48, 80, 6, 2, 1.4e9),
    "ssr2": (32, 192, 320, 6, 4, 1.2e9),
    "tsr2": (64, 192, 320, 12, 2, 780e6),
    "tsr3": (128, 192, 320, 24, 2, 630e6),
    "ssr3": (128, 768, 1280, 24, 4, 340e6),
}
# Ours: channels and blocks of each level from full resolution down, the first level
# with spatial attention, the patch size of the stem.
OURS = {
    "base": ((768, 1536, 2304, 3072), (2, 2, 3, 3), 0, 1),
    "tsr1": ((384, 768, 1280, 1664), (2, 3, 3, 3), 0, 1),
    "ssr1": ((256, 512, 1024, 1408), (2, 3, 4, 4), 1, 1),
    "ssr2": ((128, 256, 512, 1024, 1344), (2, 2, 4, 6, 4), 4, 1),
    "tsr2": ((128, 256, 512, 1024, 1152), (2, 2, 4, 4, 4), 5, 1),
    "tsr3": ((128, 256, 512, 896, 1024), (2, 2, 4, 4, 4), 5, 1),
    "ssr3": ((96, 192, 384, 768, 768), (1, 2, 4, 4, 3), 5, 2),
}


def get_config(variant: str = "base") -> ConfigDict:
    """Return the locked config of a stage."""
    stage = "ssr1" if variant == "smoke" else variant
    config = base()
    frames, height, width, fps, factor, _ = PAPER[stage]
    channels, blocks, first_attention, patch_size = OURS[stage]
    config.video.update(frames=frames, height=height, width=width, fps=fps)
    config.data.update(
        source="folder", label_vocabulary=(), target_fps=fps, batch_size=256
    )
    config.data.joint_image_frames = 8  # VDM's; the paper prints no number
    time = "temporal_attention" if stage == "base" else "temporal_conv"
    frame = ("spatial_attention", "cross_attention")
    # Stages without spatial attention read the tokens in the middle block. ssr3 does
    # not: its middle has 24 x 40 positions of 128 frames, and the paper's ssr3 has no
    # attention.
    text = (time,) if stage == "ssr3" else ("cross_attention", time)
    config.network.update(
        levels=tuple(
            dict(
                channels=c,
                blocks=b,
                layers=(*frame, time) if i >= first_attention else (time,),
            )
            for i, (c, b) in enumerate(zip(channels, blocks, strict=True))
        ),
        mid_layers=(*frame, time) if first_attention < len(channels) else text,
        head_dim=64,
        patch_size=patch_size,
        skip_downsamples=True,
        relative_position="bias",
        dtype="bfloat16",
        remat="dots",
    )
    config.conditioning.update(
        cond_dim=4 * channels[0], cond_mlp_layers=2, text_dim=4096, text_dropout=0.1
    )
    if stage != "base":
        config.stage = section_dict(Stage(stage.rstrip("123"), factor))
    if stage == "ssr3":
        config.stage.train_crop = (192, 320)
    config.train.update(
        steps=500_000, learning_rate=1e-4, warmup=10_000, checkpoint_every=5000
    )
    config.sample.update(
        steps=256 if stage == "base" else 128,
        guidance_scale=7.0,
        augmentation_snr=5.0,
        dynamic_threshold=99.5,
    )

    if variant == "smoke":
        smoke(config)
        config.data.update(source="shapes", target_fps=0.0, joint_image_frames=2)
        config.conditioning.update(text_dim=0, text_dropout=0.0)
        config.sample.guidance_scale = 1.0
    return config.lock()
