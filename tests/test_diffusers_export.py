"""A folder of diffusers is written whole or not at all, and its source is kept."""

import json
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from tests.parity.pipeline_cases import write_pipeline
from tests.run_command import refused
from vdm_jax import diffusers_export, runs
from vdm_jax.errors import UserError
from vdm_jax.pretrained import sd_scheduler
from vdm_jax.pretrained.config_json import ConfigFile
from vdm_jax.settings.discrete import Discrete

VAE = "vae/diffusion_pytorch_model.safetensors"
UNET = "unet/diffusion_pytorch_model.safetensors"
SCHEDULER, CONFIG = diffusers_export.SCHEDULER, diffusers_export.UNET


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    """Return a folder that diffusers wrote: the U-Net in shards with an index."""
    return write_pipeline(tmp_path_factory.mktemp("export") / "sd")


@pytest.fixture(scope="module")
def loaded(sd):
    return runs.load(sd)


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_refused_export_changes_nothing(sd, loaded, tmp_path):
    """One weight of the last part that is checked; float32 holds it."""
    large = tmp_path / "large"
    shutil.copytree(sd, large)
    (path,) = (large / "vae").glob("*.safetensors")
    arrays = {name: array.astype("f4") for name, array in load_file(path).items()}
    arrays["decoder.conv_in.weight"].flat[0] = 1e5
    save_file(arrays, path)
    out, new = tmp_path / "out", tmp_path / "new"
    diffusers_export.write(out, loaded, sd)
    before = contents(out)
    flags = f"--workdir={large}", "--format=diffusers"
    message = "vae: decoder.conv_in.weight is not finite as float16: --dtype=float32"
    assert message in refused("export", *flags, f"--out={new}")
    assert message in refused("export", *flags, f"--out={out}", "--overwrite")
    assert contents(out) == before
    assert not new.exists()
    diffusers_export.write(new, runs.load(large), large, "float32")
    assert load_file(new / VAE)["decoder.conv_in.weight"].flat[0] == 1e5
    assert load_file(new / UNET)["conv_in.bias"].dtype == np.float32
    assert json.loads((new / "text_encoder/config.json").read_text())["dtype"] == (
        "float32"
    )


def test_a_weight_that_is_nan_is_named(sd, loaded, tmp_path):
    codec = loaded.params["codec"]
    bias = codec["decoder"]["conv_in"]["bias"] * np.nan
    conv_in = codec["decoder"]["conv_in"] | {"bias": bias}
    codec = codec | {"decoder": codec["decoder"] | {"conv_in": conv_in}}
    broken = loaded._replace(params=loaded.params | {"codec": codec})
    with pytest.raises(UserError, match="vae: decoder.conv_in.bias is not finite: giv"):
        diffusers_export.write(tmp_path / "out", broken, sd)
    assert not any(tmp_path.iterdir())


def test_a_failing_disk_leaves_the_model_that_was_there(
    sd, loaded, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    diffusers_export.write(out, loaded, sd)
    before, write = contents(out), diffusers_export.write_bytes

    def fail(path, content):
        if path.parent.name == "vae":
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(diffusers_export, "write_bytes", fail)
    with pytest.raises(UserError, match="free some space and run again"):
        diffusers_export.write(out, loaded, sd)
    assert contents(out) == before


def test_no_weights_of_the_former_model_are_left(sd, loaded, tmp_path, capsys):
    """Shards with their index, pickled weights, vocabularies; other files stay."""
    out, linked = tmp_path / "out", tmp_path / "linked"
    shutil.copytree(sd, out)
    (out / "vae").rename(linked)
    (out / "vae").symlink_to(linked)
    for name in ("unet/diffusion_pytorch_model.bin", "tokenizer/added_tokens.json"):
        (out / name).touch()
    for name in ("README.md", "unet/notes.md"):
        (out / name).touch()
    before = contents(linked)
    diffusers_export.write(out, loaded, sd)
    assert contents(linked) == before
    assert {str(path.relative_to(out)) for path in contents(out)} == {
        "README.md", "unet/notes.md", "model_index.json",
        "unet/config.json", UNET, "vae/config.json", VAE,
        "scheduler/scheduler_config.json",
        "text_encoder/config.json", "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json",
    }  # fmt: skip
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
    runs.load(out)
    assert "is read" not in capsys.readouterr().err  # by another name


def test_what_a_model_is_read_from_is_not_written(sd, loaded, tmp_path):
    """It is the workdir, or a folder that its config names."""
    own, run, other = tmp_path / "sd", tmp_path / "run", tmp_path / "other"
    shutil.copytree(sd, own)
    run.mkdir()
    config = ConfigDict(loaded.config.to_dict())
    config.codec.path = str(own / "vae")
    config.conditioning.text_encoder = str(own / "text_encoder")
    (run / "config.json").write_text(config.to_json_best_effort())
    before = contents(tmp_path)
    for workdir, out, read in (
        (own, own, own),
        (own, own / "inside", own),
        (run, own, own / "vae"),
    ):
        line = refused(
            "export", f"--workdir={workdir}", f"--out={out}", "--format=diffusers",
            "--overwrite",
        )  # fmt: skip
        rule = f"the model is read from {read}: give a folder outside of it"
        assert f"--out={out}: {rule}" in line
    line = refused("export", f"--workdir={run}", f"--out={own}", "--overwrite")
    assert "of another format, model_index.json: give a folder of its own" in line
    assert contents(tmp_path) == before
    (other / "vae").mkdir(parents=True)
    flags = f"--workdir={own}", f"--out={other}"
    assert "--overwrite" in refused("export", *flags, "--format=diffusers")
    line = refused("export", *flags, "--format=lora", "--dtype=float32")
    assert "--dtype goes with --format=vdm_jax or" in line


def test_the_configs_of_the_base_are_kept(sd, tmp_path):
    """Where they read as those of a run; what is without effect here is in them."""
    own, out = tmp_path / "sd", tmp_path / "out"
    shutil.copytree(sd, own)
    ancestral = "EulerAncestralDiscreteScheduler"
    edit_json(own / SCHEDULER, _class_name=ancestral, timestep_spacing="leading")
    edit_json(own / CONFIG, upcast_attention=False)
    loaded = runs.load(own)

    def written(source, **changes):
        with loaded.config.unlocked():
            loaded.config.update(changes)
        diffusers_export.write(out, loaded, source)
        index = json.loads((out / "model_index.json").read_text())
        fields = [json.loads((out / p).read_text()) for p in (SCHEDULER, CONFIG)]
        assert index["scheduler"][1] == fields[0]["_class_name"]
        return fields

    theirs = [json.loads((own / path).read_text()) for path in (SCHEDULER, CONFIG)]
    assert written(own) == theirs
    run = tmp_path / "run"
    assert written(run, init_from=str(own)) == theirs
    made, unet = written(run, init_from=str(tmp_path / "gone"))
    assert made["_class_name"] == "DDPMScheduler" and unet["upcast_attention"] is True
    made, unet = written(run, init_from=str(own), sample={"sampler": "ddim"})
    assert made["_class_name"] == "DDIMScheduler" and unet == theirs[1]


@pytest.mark.parametrize("spacing", [None, *sd_scheduler.SPACINGS])
@pytest.mark.parametrize("kind", sd_scheduler.CLASSES)
def test_a_scheduler_that_is_made_is_read_as_what_it_was_made_of(
    tmp_path, kind, spacing
):
    given = {"_class_name": kind, "prediction_type": "epsilon"}
    given |= {"timestep_spacing": spacing} if spacing else {}

    def read(fields):
        found = sd_scheduler.schedule_fields(ConfigFile(tmp_path, fields))
        return Discrete(**found["schedule"]), found["prediction_type"], found["sample"]

    schedule, prediction_type, sample = read(given)
    settings = ConfigDict({"sampling_schedule": "model"} | sample)
    made = sd_scheduler.config_fields(schedule, prediction_type, settings)
    assert read(made) == (schedule, prediction_type, sample)
    if kind.startswith("Euler") and spacing in (None, "linspace"):
        assert made["_class_name"] == kind
