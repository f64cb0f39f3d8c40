"""Parameter paths of version 0.1: files, checkpoints and patterns still match."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

from configs import shapes
from tests.small_model import smoke_config
from vdm_jax import build, image_text, runs, sharding
from vdm_jax.checkpoint import Checkpoints
from vdm_jax.errors import UserError
from vdm_jax.migration import PARAMETER_PATHS, former_path, migrate_path
from vdm_jax.pretrained import params as params_file
from vdm_jax.settings import section_dict
from vdm_jax.settings.sections import Stage
from vdm_jax.training import train, trainer
from vdm_jax.training.optimizer import global_norm, make_optimizer
from vdm_jax.trees import named_leaves

ROOT = Path(__file__).parents[1]
WRITTEN_SINCE = ("sprites", "clip_small", "control")  # by version 0.2
SHIPPED = sorted(path.parent for path in ROOT.glob("[mc]*/**/params.safetensors"))


def every_path() -> list[str]:
    """Parameter paths of a model with every condition and kind of layer."""
    config = smoke_config()
    config.conditioning.update(
        text_dim=6, text_dropout=0.1, label_dropout=0.1, guidance_range=(1.0, 4.0)
    )
    config.conditioning.frame_index_embedding = True
    config.stage = section_dict(Stage("ssr"))
    layers = ("temporal_conv", "cross_attention", "temporal_attention")
    config.network.mid_layers = layers
    model = build.build_model(config)
    shapes = jax.eval_shape(model.init_params, jax.random.key(0))
    return list(named_leaves(shapes))


def test_every_row_is_a_path_of_a_model():
    paths = every_path()
    changed = {former_path(path) for path in paths} - set(paths)
    for former, present in PARAMETER_PATHS:
        former, present = (name.format(i=1) for name in (former, present))
        assert any(f"/{present}/" in f"/{path}" for path in paths), present
        assert any(f"/{former}/" in f"/{path}" for path in changed), former


def test_a_path_is_translated_there_and_back():
    for path in every_path():
        for prefix in ("", "ema/", "opt_state/inner_states/train/inner_state/1/mu/"):
            former = former_path(prefix + path)
            assert migrate_path(former) == migrate_path(prefix + path) == prefix + path
            assert former_path(former) == former


def test_only_whole_components_are_translated():
    for path in ("conditioners/a", "my_conditioner/a", "network/normal", "down/stem/a"):
        assert migrate_path(path) == path


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_shipped_model_has_the_parameters_of_its_file(folder):
    stored = load_file(folder / "params.safetensors")
    is_former = any(name.startswith("conditioner/") for name in stored)
    assert is_former == (folder.name not in WRITTEN_SINCE)
    is_pair = runs.read_config(folder).task == "contrastive"
    params = named_leaves((image_text if is_pair else runs).load(folder).params)
    params = {k: v for k, v in params.items() if not k.startswith("codec/")}
    assert params.keys() == {migrate_path(name) for name in stored}
    for name, array in stored.items():
        loaded = params[migrate_path(name)]
        assert loaded.dtype == np.float32
        np.testing.assert_array_equal(loaded, array.astype(np.float32))


def test_one_parameter_under_two_names_is_refused(tmp_path):
    path = tmp_path / "params.safetensors"
    names = ("network/down/stem/bias", "network/down/conv_in/bias")
    save_file({name: np.full(2, i, "f4") for i, name in enumerate(names)}, path)
    like = {"network": {"down": {"conv_in": {"bias": np.zeros(2)}}}}
    with pytest.raises(
        UserError, match="is a second, different network/down/conv_in/bias"
    ):
        params_file.read(path, like)


def small_config(steps: int):
    """A run of two updates per checkpoint, with an EMA and a clipped gradient."""
    config = shapes.get_config("smoke").unlock()
    layers = ("temporal_conv",)
    levels = tuple(dict(channels=c, blocks=1, layers=layers) for c in (8, 12))
    config.network.update(levels=levels, mid_layers=())
    config.data.batch_size = 2
    config.train.update(
        steps=steps, warmup=0, checkpoint_every=2, grad_clip_norm=0.01,
        sample_every=0, eval_every=0, ema_decay=0.9,
    )  # fmt: skip
    return config


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    """A run of four updates, and a copy as version 0.1 left it after two."""
    run = tmp_path_factory.mktemp("run")
    old = tmp_path_factory.mktemp("copy") / "old"
    train.train(small_config(4), run)
    shutil.copytree(run, old, ignore=shutil.ignore_patterns("checkpoints"))
    source = Checkpoints(run / "checkpoints", read_only=True)
    target = Checkpoints(old / "checkpoints")
    former = {former_path(name): leaf for name, leaf in source.arrays(2).items()}
    target.save(2, former, source.extra(2))
    target.close()
    names = (old / "checkpoints" / "2" / "leaves.json").read_text()
    assert "conditioner/frame/" in names and "/mu/network/down/stem/" in names
    assert "conv_in" not in names
    return run, old


def checkpoint(workdir: Path, step: int) -> dict[str, jax.Array]:
    return Checkpoints(workdir / "checkpoints", read_only=True).arrays(step)


def assert_same_arrays(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert np.asarray(a[name]).tobytes() == np.asarray(b[name]).tobytes(), name


def test_a_checkpoint_of_version_0_1_is_restored(workdirs):
    """The parameters, their EMA and the moments of the optimizer."""
    run, old = workdirs
    arrays = checkpoint(run, 2)
    assert_same_arrays(checkpoint(old, 2), arrays)
    loaded = named_leaves({"ema": runs.load(old).params})
    ema = {name: leaf for name, leaf in arrays.items() if name.startswith("ema/")}
    assert_same_arrays(loaded, ema)


def test_a_run_of_version_0_1_is_a_start_for_another(workdirs, tmp_path, monkeypatch):
    """The state of config.init_from, without training it."""
    _, old = workdirs
    monkeypatch.setattr(trainer, "train_loop", lambda update, state, *_, **__: state)
    monkeypatch.setattr(trainer.Trainer, "compile_update", lambda *_: None)
    config = small_config(4)
    config.init_from = str(old)
    state = train.train(config, tmp_path)
    assert_same_arrays(named_leaves(state.params), named_leaves(runs.load(old).params))


@pytest.mark.slow
def test_a_run_of_version_0_1_resumes_bit_for_bit(workdirs, tmp_path):
    """Two more updates, with a clipped gradient, as if it had never stopped."""
    run, old = workdirs
    copy = shutil.copytree(old, tmp_path / "copy")
    train.train(small_config(4), copy)
    assert_same_arrays(checkpoint(copy, 4), checkpoint(run, 4))


def test_the_norm_is_summed_in_the_former_order():
    """Renaming sorts the leaves of a tree differently, and float sums with it."""
    rng = np.random.default_rng(0)
    different, paths = 0, every_path()
    for _ in range(5):
        leaves = {path: rng.normal(size=7).astype(np.float32) for path in paths}
        present, former = {}, {}
        for name, leaf in leaves.items():
            insert(present, name, leaf)
            insert(former, former_path(name), leaf)
        assert global_norm(present) == optax.tree.norm(former)
        different += optax.tree.norm(present) != optax.tree.norm(former)
    assert different


def insert(tree: dict, path: str, leaf) -> None:
    *parents, name = path.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[name] = leaf


TRAINABLE = {
    r"conditioner/.*": r"conditioning_encoder/.*",
    r".*/(stem|level_0_block_0)/.*": r".*/(conv_in|level_0_block_0)/.*",
    r"network/(down/shrink|up/grow)_\d/.*": r"network/(down/down|up/up)sample_\d/.*",
    r"network/norm/.*": r"network/norm_out/.*",
    r"(?!conditioner/(frame|noise)).*": r"(?!.*/(frame_index|noise_level)).*",
}


@pytest.mark.parametrize("pattern", TRAINABLE)
def test_a_pattern_of_version_0_1_trains_the_same_parameters(pattern):
    tree: dict = {}
    for path in every_path():
        insert(tree, path, jnp.ones(1))
    tables = [
        sharding.match_rules(tree, ((p, True), (".*", False)), "train.trainable")
        for p in (pattern, TRAINABLE[pattern])
    ]
    assert tables[0] == tables[1]
    assert 0 < sum(jax.tree.leaves(tables[0])) < len(jax.tree.leaves(tree))
    config = small_config(2).train
    config.trainable = ((pattern, True), (".*", False))
    state = make_optimizer(config).init(tree)
    config.trainable = ((TRAINABLE[pattern], True), (".*", False))
    assert jax.tree.structure(state) == jax.tree.structure(
        make_optimizer(config).init(tree)
    )
