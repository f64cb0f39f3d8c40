"""Complete configs with the default of every field; the others change some.

Not an experiment by itself. vdm_jax/settings/sections.py declares the fields, and
docs/settings.md lists them. A config is plain data: `--config.train.steps=1000` sets a
field. An unknown field or a value of another type is an error.
"""

from ml_collections import ConfigDict

from vdm_jax.settings import (
    DISTILLATION,
    MODEL,
    OPTIONAL,
    TRAINING,
    compose,
    open_section,
)


def base() -> ConfigDict:
    """Return a config of a base model; each experiment sets its network.levels."""
    return compose({name: TRAINING[name] for name in TRAINING if name not in OPTIONAL})


def tuning() -> ConfigDict:
    """Return a config of the model of init_from: its fields are None until one is set.

    train.py fills them in. One that is set wins, whatever its value is.
    """
    config = base()
    for name in set(MODEL) - set(OPTIONAL):
        config[name] = open_section(TRAINING[name])
    return config


def distillation() -> ConfigDict:
    """Return a config of distill.py; what it does not have is the teacher's."""
    return compose(DISTILLATION)


def smoke(config: ConfigDict) -> ConfigDict:
    """Set the tiny sizes that all `:smoke` variants share; they run in seconds."""
    config.video.update(frames=8, height=16, width=16)
    config.data.batch_size = 2
    config.network.update(
        levels=(
            dict(channels=8, blocks=1, layers=("temporal_conv",)),
            dict(
                channels=16,
                blocks=1,
                layers=("spatial_attention", "temporal_attention"),
            ),
        ),
        mid_layers=("spatial_attention", "temporal_attention"),
        head_dim=8,
        patch_size=2,
        skip_downsamples=False,
        relative_position="bias",
        dropout=0.0,
        dtype="float32",
        remat="none",
    )
    config.conditioning.update(cond_dim=16, cond_mlp_layers=1)
    config.train.update(
        steps=4,
        warmup=1,
        checkpoint_every=2,
        log_every=2,
        sample_every=2,
        eval_every=4,
    )
    config.sample.update(num=2, steps=2, batch_size=8)
    return config
