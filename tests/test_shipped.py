"""A tuned model is shipped as what it trained, next to the model it was tuned from."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import vdm_jax
from configs import distill_shapes, tune_a_video
from tests import small_model
from tests.run_command import refused
from vdm_jax import build, files, runs, sharding, shipped
from vdm_jax.checkpoint import Checkpoints
from vdm_jax.commands.export import export_model
from vdm_jax.distillation import rounds
from vdm_jax.errors import UserError
from vdm_jax.networks import lora
from vdm_jax.runs import PARAMS
from vdm_jax.training.init import start_from
from vdm_jax.trees import named_leaves

QUERY = "/(self|cross)_attention/q/kernel"
NEW = "/time_(norm|attention)/"
FROZEN = "network/down/conv_in/kernel"


def write_run(workdir, base, **network):
    """Write a run without training: each leaf that trains differs from its start."""
    config = small_model.sd_config()
    tuning = tune_a_video.get_config()
    loaded = runs.load(base)
    text = loaded.config.conditioning.text_encoder
    config.conditioning.update(text_encoder=text)
    config.video.frames = 2
    config.network.update(temporal="tune", frame_reads="previous", joint_norms=True)
    config.network.update(network)
    config.init_from, config.init_new = str(base), (*tuning.init_new, lora.LEAVES)
    config.train.trainable = tuning.train.trainable
    if "lora_rank" in network:
        config.train.trainable = ((lora.LEAVES, True), (".*", False))
    model = build.build_model(config)
    like = jax.eval_shape(model.init_params, jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    start = start_from(loaded.params, like, lambda: zeros, "base", config.init_new)
    trains = sharding.match_rules(start, config.train.trainable, "trainable")
    rng = np.random.default_rng(3)
    params = jax.tree.map(
        lambda p, t: p + t * rng.normal(0, 0.1, p.shape).astype(p.dtype), start, trains
    )
    workdir.mkdir()
    (workdir / "config.json").write_text(config.to_json_best_effort())
    checkpoints = Checkpoints(workdir / "checkpoints")
    checkpoints.save(7, {"params": params}, {})
    checkpoints.close()
    return workdir


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return a folder with an image model, a run that tuned it, and the run's export.

    Their names are model, run and tuned. Tests change copies.
    """
    root = tmp_path_factory.mktemp("shipped")
    write_run(root / "run", small_model.write_sd_model(root))
    export_model(root / "run", root / "tuned")
    return root


@pytest.fixture(scope="module")
def leaves(folders):
    """Return the parameters of each of the three by their paths."""
    names = ("model", "run", "tuned")
    return {name: named_leaves(runs.load(folders / name).params) for name in names}


@pytest.fixture
def moved(folders, tmp_path):
    """Return a folder with copies of the image model and of the export."""
    for name in ("model", "tuned"):
        shutil.copytree(folders / name, tmp_path / name)
    return tmp_path


def change_one_number(model, name=FROZEN):
    arrays = load_file(model / PARAMS)
    arrays[name].flat[0] += 1
    save_file(arrays, model / PARAMS)


def test_the_file_holds_what_trained_and_what_is_new(folders, leaves):
    stored, names = load_file(folders / "tuned" / PARAMS), leaves["run"]
    expected = {name for name in names if re.search(f"{QUERY}|{NEW}", name)}
    assert stored.keys() == expected and len(expected) < len(names) / 2
    assert any("time_norm" in name for name in stored)  # new and frozen
    fields = json.loads((folders / "tuned" / "config.json").read_text())
    assert fields["init_from"] == "../model"
    assert fields["init_checksum"] == files.checksum([folders / "model" / PARAMS])


def test_the_rest_is_that_of_the_base(folders, leaves):
    assert leaves["tuned"].keys() == leaves["run"].keys()
    stored = load_file(folders / "tuned" / PARAMS)
    for name, leaf in leaves["run"].items():
        if name in stored:
            assert (np.float16(leaf) != leaf).any() or not leaf.any()
            leaf = np.float16(leaf)
        else:
            np.testing.assert_array_equal(leaf, leaves["model"][name])
        np.testing.assert_array_equal(leaves["tuned"][name], leaf)


def test_it_is_the_same_on_a_mesh(folders, leaves):
    mesh = sharding.make_mesh()
    for name, leaf in named_leaves(runs.load(folders / "tuned", mesh).params).items():
        assert leaf.sharding.mesh == mesh
        np.testing.assert_array_equal(leaf, leaves["tuned"][name])


def test_both_folders_are_moved_and_sampled(moved):
    trained = vdm_jax.load(moved / "tuned")
    assert trained.step == -1
    assert trained.config.init_from == str(moved / "model")
    videos = vdm_jax.sample(trained, num=1, prompt="a cat", steps=2)
    assert videos.shape == (1, 2, 8, 8, 3) and videos.std() > 0


def test_an_export_is_exported_again(moved):
    export_model(moved / "tuned", moved / "again" / "tuned")
    one, other = (moved / name / "tuned" for name in (".", "again"))
    assert (one / PARAMS).read_bytes() == (other / PARAMS).read_bytes()
    assert runs.read_config(other).init_from == str(moved / "model")


def test_a_base_that_changed_or_is_missing_is_one_line(moved):
    """Before anything compiles: where the config is read."""
    before = files.checksum([moved / "model" / PARAMS])
    wanted = f"{moved}/model, whose parameters had the checksum {before}"
    change_one_number(moved / "model")
    line = refused("sample", f"--workdir={moved}/tuned", f"--out={moved}/out")
    assert f"{wanted}: it has " in line and "init_from of" in line
    for load in (runs.load, runs.read_config):
        with pytest.raises(UserError, match="it has "):
            load(moved / "tuned")
    (moved / "model").rename(moved / "elsewhere")
    with pytest.raises(UserError, match="there is no such folder: put"):
        runs.read_config(moved / "tuned")


def test_a_model_is_tuned_from_a_tuned_one(moved, leaves):
    """By a LoRA; it needs both of the others."""
    run = write_run(moved / "run", moved / "tuned", lora_rank=1)
    export_model(run, moved / "lora")
    assert all("/lora_" in name for name in load_file(moved / "lora" / PARAMS))
    last = named_leaves(runs.load(moved / "lora").params)
    assert leaves["tuned"].keys() < last.keys()
    for name, leaf in leaves["tuned"].items():
        np.testing.assert_array_equal(last[name], leaf)
    with pytest.raises(UserError, match=f"model is the model that {run} was tuned"):
        export_model(run, moved / "model")
    change_one_number(moved / "model")
    message = f"{moved}/tuned holds only what was tuned of the model {moved}/model"
    with pytest.raises(UserError, match=message):
        runs.load(moved / "lora")


def test_a_run_whose_base_changed_stores_nothing_or_all(folders, moved):
    run, out = shutil.copytree(folders / "run", moved / "run"), moved / "out"
    config = runs.read_config(run)
    config.init_from = str(moved / "model")
    (run / "config.json").write_text(config.to_json_best_effort())
    trained = next(n for n in load_file(moved / "tuned" / PARAMS) if QUERY[-9:] in n)
    change_one_number(moved / "model", trained)
    export_model(run, moved / "same")  # what trained is the run's own
    change_one_number(moved / "model")
    with pytest.raises(UserError, match=f"its {FROZEN} is another now: put that"):
        export_model(run, out)
    shutil.rmtree(moved / "model")
    with pytest.raises(UserError, match="tuned from the model .*no config.json"):
        export_model(run, out)
    assert not out.exists()
    config.init_from = ""
    (run / "config.json").write_text(config.to_json_best_effort())
    export_model(run, out)
    loaded = runs.load(out)
    stored = load_file(out / PARAMS)
    assert stored.keys() == named_leaves(loaded.params).keys()
    assert loaded.config.init_checksum == ""


def test_a_student_of_a_tuned_model_is_none(folders):
    teacher, config = runs.read_config(folders / "tuned"), distill_shapes.get_config()
    [first, *_] = rounds.plan_rounds(config.distill)
    student = rounds.student_config(config, teacher, first, "tuned")
    assert (student.init_from, student.init_checksum) == ("tuned", "")


def test_a_path_of_another_tree_is_absolute(folders):
    assert shipped._portable("/a/b", folders) == "/a/b"
    assert shipped._portable(f"{folders}/model", folders / "x") == "../model"
