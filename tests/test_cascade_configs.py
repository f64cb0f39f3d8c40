"""The configs of cascades: shapes that chain, and parameters as printed."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from configs import cascade_gpu, cascade_small
from configs import imagen_video as config
from vdm_jax.build import build_model
from vdm_jax.training import checks, step

DOC = Path(__file__).parents[1] / "docs" / "cascade.md"


def build(stage, module=config):
    made = module.get_config(stage).unlock()
    made.data.update(mean=0.0, variance=1.0)
    checks.check_config(made)
    return build_model(made)


@pytest.mark.parametrize(
    "module, first, last",
    [
        (config, (16, 24, 40, 3), (128, 768, 1280, 3)),
        (cascade_small, (4, 12, 16, 3), (16, 48, 64, 3)),
        (cascade_gpu, (8, 24, 32, 3), (32, 96, 128, 3)),
    ],
)
def test_every_stage_takes_what_the_one_before_makes(module, first, last):
    before = build("base", module)
    assert before.low_resolution is None and before.shape == first
    for stage in module.STAGES[1:]:
        model = build(stage, module)
        assert model.low_resolution.input_shape == before.shape, stage
        before = model
    assert before.shape == last


@pytest.mark.parametrize("stage", config.STAGES)
def test_parameters_are_those_of_the_table(stage):
    model = build(stage)
    shapes = jax.eval_shape(model.init_params, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == pytest.approx(config.PAPER[stage][5], rel=0.04)
    (row,) = (line for line in DOC.read_text().splitlines() if f"| {stage} |" in line)
    number, unit = re.search(r"([\d.]+) ([BM]) \|$", row).groups()
    printed = float(number) * {"B": 1e9, "M": 1e6}[unit]
    assert count == pytest.approx(printed, rel=0.004)
    # What training is given: images with texts of their own beside the video.
    images, (frames, *size) = (
        config.get_config(stage).data.joint_image_frames,
        model.shape,
    )
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
        {name: jax.ShapeDtypeStruct(*of) for name, of in batch.items()},
    )
    assert loss.shape == () and loss.dtype == jnp.float32
