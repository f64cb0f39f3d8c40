"""The configs of cascades: shapes of stages that fit, parameter counts as printed."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from configs import cascade_gpu, cascade_small, imagen_video
from vdm_jax.build import build_model
from vdm_jax.training import checks, step

DOC = Path(__file__).parents[1] / "docs" / "cascade.md"


def build(stage, module=imagen_video):
    config = module.get_config(stage).unlock()
    # One clip a device: the memory of this machine is not what is tested.
    config.data.update(mean=0.0, variance=1.0, batch_size=jax.device_count())
    config.train.grad_accum_steps = 1
    checks.check_config(config)
    return build_model(config)


@pytest.mark.parametrize(
    "module, first, last",
    [
        (imagen_video, (16, 24, 40, 3), (128, 768, 1280, 3)),
        (cascade_small, (4, 12, 16, 3), (16, 48, 64, 3)),
        (cascade_gpu, (8, 24, 32, 3), (32, 96, 128, 3)),
    ],
)
def test_the_input_of_each_stage_is_the_output_of_the_previous(module, first, last):
    previous = build("base", module)
    assert previous.low_resolution is None and previous.shape == first
    for stage in module.STAGES[1:]:
        model = build(stage, module)
        assert model.low_resolution.input_shape == previous.shape, stage
        previous = model
    assert previous.shape == last


FIRST, *MIDDLE, LAST = imagen_video.STAGES


@pytest.mark.parametrize(
    "stage", [FIRST, *(pytest.param(s, marks=pytest.mark.slow) for s in MIDDLE), LAST]
)
def test_parameter_counts_are_those_of_the_table(stage):
    model = build(stage)
    shapes = jax.eval_shape(model.init_params, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == pytest.approx(imagen_video.PAPER[stage][5], rel=0.04)
    (row,) = (line for line in DOC.read_text().splitlines() if f"| {stage} |" in line)
    number, unit = re.search(r"([\d.]+) ([BM]) \|$", row).groups()
    printed = float(number) * {"B": 1e9, "M": 1e6}[unit]
    assert count == pytest.approx(printed, rel=0.004)
    # A batch of training: independent images, each with a text of its own.
    images = imagen_video.get_config(stage).data.joint_image_frames
    frames, *size = model.shape
    texts = 2, 1 + images, 7
    batch = {
        "video": ((2, frames + images, *size), jnp.uint8),
        "frame_mask": ((2, frames + images), jnp.bool_),
        "text": ((*texts, model.text_dim), jnp.float32),
        "text_mask": (texts, jnp.bool_),
    }
    loss_fn = step.make_loss(model, "snr_plus_one")
    loss, _ = jax.eval_shape(
        lambda params, batch: loss_fn(params, {}, batch, jax.random.key(0)),
        shapes,
        {name: jax.ShapeDtypeStruct(*spec) for name, spec in batch.items()},
    )
    assert loss.shape == () and loss.dtype == jnp.float32
