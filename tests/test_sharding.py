"""The sharding rules of config.mesh: the defaults, other rules, and wrong ones."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from configs import base, shapes
from vdm_jax import build, migration, sharding
from vdm_jax.errors import UserError
from vdm_jax.training.train import train

DEFAULT_SHARDINGS = '''
import jax
from jax.sharding import PartitionSpec as P
from configs import shapes
from vdm_jax import build, data, sharding
from vdm_jax.training.trainer import Trainer
from vdm_jax.trees import named_leaves

def expected(name, shape, fsdp):
    """The specs of version 0.1: the longest divisible axis of a kernel, over fsdp."""
    axes = [None] * len(shape)
    if name.split("/")[-1] in ("kernel", "embedding") and fsdp > 1:
        lengths = [n if n % fsdp == 0 else 0 for n in shape]
        if max(lengths):
            axes[lengths.index(max(lengths))] = "fsdp"
    return P(*axes)

split = set()
for sizes in (8, 1), (4, 2), (1, 8):
    config = shapes.get_config("smoke").unlock()
    config.data.batch_size, (config.mesh.data, config.mesh.fsdp) = 8, sizes
    source = data.open_source(config)
    data.resolve(config, source)
    mesh = sharding.mesh_from_config(config.mesh)
    trainer = Trainer(config, build.build_model(config), source, None, mesh)
    for name, leaf in named_leaves(trainer.abstract_state).items():
        spec = expected(name, leaf.shape, sizes[1])
        assert leaf.sharding.spec == spec, (name, leaf.sharding.spec, spec)
        split.add(spec)
    for name, array in trainer.batch_shapes.items():
        assert array.sharding.spec == P(("data", "fsdp")), name
assert len(split) > 4
'''

BATCH_OVER_DATA = """
import jax, numpy as np
from configs import shapes
from vdm_jax import sharding
config = shapes.get_config("smoke").unlock().mesh
config.update(data=4, fsdp=2, activation_rules=(("batch", "data"),))
config.param_rules = ((".*bias", ("data", "fsdp")), (".*", None))
mesh = sharding.mesh_from_config(config)
split = sharding.batch_sharding(mesh, config.activation_rules)
x = jax.device_put(np.zeros((8, 3)), split)
assert {shard.data.shape for shard in x.addressable_shards} == {(2, 3)}
tree = {"a": {"bias": jax.ShapeDtypeStruct((16,), "float32")},
        "b": {"bias": jax.ShapeDtypeStruct((3, 24), "float32")},
        "kernel": jax.ShapeDtypeStruct((16, 16), "float32")}
specs = sharding.state_shardings(mesh, tree, config.param_rules)
shapes = jax.tree.map(lambda leaf, s: s.shard_shape(leaf.shape), tree, specs)
assert shapes == {"a": {"bias": (2,)}, "b": {"bias": (3, 3)}, "kernel": (16, 16)}
"""


@pytest.mark.parametrize(
    "program", [DEFAULT_SHARDINGS, BATCH_OVER_DATA], ids=["default", "others"]
)
def test_shardings_on_eight_devices(program):
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
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
        ("param_rules", ((".*", "tensor"),), "'tensor'.*mesh axes data, fsdp"),
        ("param_rules", (("(", "fsdp"),), "a regular expression"),
        ("param_rules", (("kernel", "fsdp"),), "no mesh.param_rules pattern matches"),
        ("param_rules", (".*",), "config.mesh.param_rules"),
        ("activation_rules", (("batch", ("data", "model")),), "mesh axes data, fsdp"),
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


def test_rules_of_activations_constrain_the_network():
    """The compiled program splits the batch only where a rule says so."""
    config = shapes.get_config("smoke").unlock()
    config.data.update(mean=0.0, variance=1.0)
    model, mesh = build.build_model(config), sharding.make_mesh()
    params = jax.eval_shape(model.init_params, jax.random.key(0))

    def constraints(rules):
        z = jnp.zeros((1, *model.shape))
        arrays = model.null_conditions((1,))
        cond = arrays | model.raw_conditions(arrays)
        level = build.schedules.noise_level(model.schedule, jnp.ones(1))

        def predict(params):
            return model.denoiser(params)(z, level, cond).x

        with jax.set_mesh(mesh), sharding.activation_rules(rules):
            return str(jax.make_jaxpr(predict)(params)).count("('data', 'fsdp')")

    assert constraints(sharding.ACTIVATION_RULES) > 10
    assert constraints((("batch", None),)) == 0
    assert P(("data", "fsdp")) == sharding.batch_sharding(mesh).spec
