"""The sharding rules of config.mesh: the defaults, other rules, and wrong ones."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest

from configs import base, shapes
from vdm_jax import migration, sharding
from vdm_jax.errors import UserError
from vdm_jax.training.train import train

DEFAULT_SHARDINGS = '''
import math
from configs import shapes
from vdm_jax import build, data, partition, sharding
from vdm_jax.training.trainer import Trainer
from vdm_jax.trees import named_leaves

def expected(name, shape, fsdp):
    """Parts of each axis in version 0.1: the longest divisible one of a kernel."""
    parts = [1] * len(shape)
    if name.split("/")[-1] in ("kernel", "embedding") and fsdp > 1:
        lengths = [n if n % fsdp == 0 else 0 for n in shape]
        if max(lengths):
            parts[lengths.index(max(lengths))] = fsdp
            return parts
        return None  # where none is, a part of fsdp splits it today
    return parts

split = set()
for sizes in (8, 1), (4, 2), (1, 8):
    config = shapes.get_config("smoke").unlock()
    config.data.batch_size, (config.mesh.data, config.mesh.fsdp) = 8, sizes
    source = data.open_source(config)
    data.resolve(config, source)
    mesh = sharding.mesh_from_config(config.mesh)
    assert sharding.describe(mesh) == " x ".join(
        f"{a}={n}" for a, n in zip(("data", "fsdp"), sizes) if n > 1)
    trainer = Trainer(config, build.build_model(config), source, None, mesh)
    for name, leaf in named_leaves(trainer.abstract_state).items():
        shard = leaf.sharding.shard_shape(leaf.shape)
        parts = [n // m for n, m in zip(leaf.shape, shard)]
        want = expected(name, leaf.shape, sizes[1])
        assert want is None or parts == want, (name, parts, want)
        split.add(leaf.sharding.spec)
    for name, array in trainer.batch_shapes[0].items():
        assert array.sharding.shard_shape(array.shape)[0] == 1, name
assert len(split) > 4
'''

OTHER_RULES = """
import jax, numpy as np
from configs import shapes
from vdm_jax import sharding
config = shapes.get_config("smoke").unlock().mesh
config.update(data=4, fsdp=2, activation_rules=(("batch", "data"),))
config.param_rules = ((".*bias", ("data", "fsdp")), (".*", None))
mesh = sharding.mesh_from_config(config)
split = sharding.batch_sharding(mesh, (8, 3), config.activation_rules)
x = jax.device_put(np.zeros((8, 3)), split)
assert {shard.data.shape for shard in x.addressable_shards} == {(2, 3)}
tree = {"a": {"bias": jax.ShapeDtypeStruct((16,), "float32")},
        "b": {"bias": jax.ShapeDtypeStruct((3, 24), "float32")},
        "kernel": jax.ShapeDtypeStruct((16, 16), "float32")}
specs = sharding.state_shardings(mesh, tree, config.param_rules)
shapes = jax.tree.map(lambda leaf, s: s.shard_shape(leaf.shape), tree, specs)
assert shapes == {"a": {"bias": (2,)}, "b": {"bias": (3, 3)}, "kernel": (16, 16)}
"""

# Row i of a batch is row i, whatever the mesh, and frames are split where it is small.
ROWS = """
import itertools, jax, numpy as np
from vdm_jax import sharding
for data, fsdp, tensor, context in itertools.product((1, 2, 4, 8), repeat=4):
    if data * fsdp * tensor * context != 8:
        continue
    mesh = sharding.make_mesh(data, fsdp, tensor, context)
    for batch in 1, 2, 3, 16:
        want = np.arange(batch * 8.).reshape(batch, 8, 1, 1, 1) * np.ones((3, 1))
        split = sharding.batch_sharding(mesh, want.shape)
        rows = sharding.process_rows(split, batch)
        assert rows == list(range(batch))
        shape = jax.ShapeDtypeStruct(want.shape, want.dtype, sharding=split)
        placed = sharding.place_rows(want, shape, rows)
        np.testing.assert_array_equal(placed, want)
        shard = placed.addressable_shards[0].data
        assert want.size // shard.size == 8 // tensor, (mesh, batch)
        whole = sharding.whole_batch(mesh, batch)
        parts = 8 // tensor
        if batch < parts:
            assert whole == batch
        else:
            assert whole % parts == 0 and 0 <= whole - batch < parts
"""


# A batch that would leave devices without work, in numbers and before it compiles.
BATCHES = """
from configs import shapes
from vdm_jax.errors import UserError
from vdm_jax.training.checks import check_config

def refusal(batch, steps=1, **mesh):
    config = shapes.get_config("smoke").unlock()
    config.data.batch_size, config.train.grad_accum_steps = batch, steps
    config.mesh.update(mesh)
    try:
        check_config(config)
    except UserError as error:
        return str(error)

assert "batch_size=12 must be a multiple of 8 (8 device(s)" in refusal(12)
assert "nearest 8 or 16" in refusal(12)
assert "batch_size=18 must be a multiple of 4" in refusal(18, tensor=2)
assert "batch_size=24 must be a multiple of 16" in refusal(24, steps=2)
assert "batch_size=3 must be a multiple of 2" in refusal(3, steps=2)
for batch, steps in (1, 1), (2, 1), (3, 1), (8, 1), (16, 1), (2, 2), (16, 2):
    assert refusal(batch, steps) is None, (batch, steps)
"""


@pytest.mark.parametrize(
    "program",
    [DEFAULT_SHARDINGS, OTHER_RULES, ROWS, BATCHES],
    ids=["default", "others", "rows", "batches"],
)
def test_shardings_on_eight_devices(program):
    run_on_devices(program, 8)


def run_on_devices(program: str, devices: int) -> None:
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def as_lists(value):
    return [as_lists(v) for v in value] if isinstance(value, tuple) else value


@pytest.mark.parametrize("config", [base.base(), base.distillation()])
def test_the_default_of_a_config_and_of_an_older_file_is_that_of_sampling(config):
    older = migration.migrate({"mesh": {"data": 2}})["mesh"]
    for name, rules in (
        ("activation_rules", sharding.ACTIVATION_RULES),
        ("param_rules", sharding.PARAM_RULES),
    ):
        assert config.mesh[name] == rules
        assert older[name] == as_lists(rules)


@pytest.mark.parametrize(
    ("field", "rules", "message"),
    [
        ("param_rules", ((".*", "model"),), "'model'.*mesh axes slice, data, fsdp"),
        ("param_rules", (("(", "fsdp"),), "a regular expression"),
        ("param_rules", (("kernel", "fsdp"),), "no mesh.param_rules pattern matches"),
        ("param_rules", (".*",), "config.mesh.param_rules"),
        (
            "activation_rules",
            (("batch", ("data", "model")),),
            "mesh axes slice, data, fsdp, tensor, context",
        ),
        ("activation_rules", (("batches", "data"),), "one of batch, frames, height"),
        ("activation_rules", (("batch", 1),), "config.mesh.activation_rules"),
    ],
)
def test_a_wrong_rule_is_refused_before_anything_is_written(
    tmp_path, field, rules, message
):
    config = shapes.get_config("smoke").unlock()
    config.mesh[field] = rules
    with pytest.raises(UserError, match=message) as caught:
        train(config, tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


CONSTRAINTS = """
import jax, jax.numpy as jnp
from configs import shapes
from vdm_jax import build, sharding
config = shapes.get_config("smoke").unlock()
config.data.update(mean=0.0, variance=1.0)
model, mesh = build.build_model(config), sharding.make_mesh(data=2)
params = jax.eval_shape(model.init_params, jax.random.key(0))

def constraints(rules):
    z = jnp.zeros((2, *model.shape))
    arrays = model.null_conditions((2,))
    cond = arrays | model.raw_conditions(arrays)
    level = build.schedules.noise_level(model.schedule, jnp.ones(2))

    def predict(params):
        return model.denoiser(params)(z, level, cond).x

    with jax.set_mesh(mesh), sharding.activation_rules(mesh, rules):
        return str(jax.make_jaxpr(predict)(params)).count("P('data_0'")

assert constraints(sharding.ACTIVATION_RULES) > 10
assert constraints((("batch", None),)) == 0
"""


def test_rules_of_activations_constrain_the_network():
    """The compiled program splits the batch only where a rule says so."""
    run_on_devices(CONSTRAINTS, 2)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"data": 2}, "mesh data=2 does not cover the 1 device"),
        ({"fsdp": 2}, "mesh data=-1 x fsdp=2 does not cover"),
        ({"context": 0}, "mesh data=-1 x context=0 does not cover"),
        ({"slice": 2, "data": 4}, "mesh slice=2 x data=4 does not cover"),
    ],
)
def test_a_mesh_that_is_not_of_all_devices_is_refused(axes, message):
    with pytest.raises(UserError, match=message) as caught:
        sharding.make_mesh(**axes)
    assert "product must be 1" in str(caught.value)
    assert sharding.describe(sharding.make_mesh()) == "of one device"


@pytest.mark.parametrize(
    "text", ["fsdp", "fsdp=", "rows=1", "data=1;fsdp=1", "data=1,data=1", ",", "a"]
)
def test_a_mesh_of_another_form_is_refused(text):
    with pytest.raises(UserError, match=f"mesh={text}: axes .*fsdp=4,context=2"):
        sharding.mesh_from_text(text)


def test_a_mesh_is_read_from_a_setting():
    assert sharding.mesh_from_text("").size == 1
    assert sharding.mesh_from_text("fsdp=1,context=1") == sharding.make_mesh()


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a mesh reads of a device of a TPU pod."""

    id: int
    slice_index: int
    process_index: int
    coords: tuple[int, int, int]
    device_kind: str = "TPU v5 lite"
    platform: str = "tpu"
    core_on_chip: int = 0


def test_the_slices_of_a_pod_are_an_axis_of_their_own():
    """Chips of one slice are never apart in the axis slice, whatever their order."""
    rng = np.random.default_rng(0)
    chips = [Chip(i, i // 4, i // 4, (i % 2, i // 2 % 2, 0)) for i in range(8)]
    mixed = [chips[i] for i in rng.permutation(8)]
    shape = [2, 1, 4, 1, 1]
    placed = sharding._place_devices(shape, mixed)
    assert placed.shape == tuple(shape)
    assert [{c.slice_index for c in part.flat} for part in placed] == [{0}, {1}]
    with pytest.raises(UserError, match="of 2 slices of a pod.*set slice=2"):
        sharding._place_devices([1, 1, 8, 1, 1], mixed)
    # Two mesh axes share an axis of the network.
    assert sharding._place_devices([2, 2, 1, 2, 1], mixed).shape == (2, 2, 1, 2, 1)
    gpus = [dataclasses.replace(chip, platform="gpu") for chip in chips]
    assert sharding.num_slices(chips) == 2 and sharding.num_slices(gpus) == 1
