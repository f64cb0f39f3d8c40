"""A folder of diffusers as a workdir: it samples what diffusers samples with it."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from tests.parity.pipeline_cases import (
    ARRAYS,
    NEGATIVE,
    PROMPT,
    RUNS,
    SCALE,
    STEPS,
    STRENGTH,
    noise,
    picture,
    recorded_files,
    write_pipeline,
)
from tests.run_command import call
from vdm_jax import cascade, diffusers_export, runs, sampling
from vdm_jax.diffusion import samplers
from vdm_jax.errors import UserError

RECORDED = np.load(ARRAYS)


def to_ours(array):
    """Return latents [b, c, h, w] of torch as z [b, 1, h, w, c]."""
    return np.moveaxis(array, 1, -1)[:, None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pipeline(tmp_path_factory.mktemp("pipeline") / "sd")


def prepare(folder, run):
    """Return model, parameters, settings and conditions of a recorded run."""
    read = cascade.read_model(folder)
    cond, negative = cascade.encode_conditions(
        read, 1, prompts=[PROMPT], negative_prompt=RUNS[run][2]
    )
    read = read.with_sampling({"steps": STEPS, "guidance_scale": SCALE})
    loaded = runs.load(folder)
    return loaded.model, loaded.params, read.stages[0].settings, cond, negative


@pytest.mark.parametrize("run", [run for run, row in RUNS.items() if not row[3]])
def test_it_samples_the_image_of_diffusers(tmp_path, run):
    """Half precision, the U-Net in five shards, all schedulers; from the same noise.

    One run has a negative prompt, and the names of older folders.
    """
    folder = write_pipeline(tmp_path, run, former_names=run == "ddim_v")
    model, params, settings, cond, negative = prepare(folder, run)
    assert (negative is None) == (RUNS[run][2] != NEGATIVE)
    inputs = sampling.SamplingInputs(cond, negative, initial_noise=to_ours(noise()))
    z = sampling.generate(model, params, 1, settings, inputs)
    latents = to_ours(RECORDED[f"{run}/latents"])
    np.testing.assert_allclose(z, latents, atol=1e-3 * latents.std())
    videos = model.codec.decode_on_host(z, params["codec"])
    image = np.clip(videos[:, 0] / 2 + 0.5, 0, 1)
    np.testing.assert_allclose(image, RECORDED[f"{run}/image"], atol=1e-3)


@pytest.mark.parametrize("run", [run for run, row in RUNS.items() if row[3]])
def test_it_edits_a_picture_as_diffusers(tmp_path, monkeypatch, run):
    """StableDiffusionImg2ImgPipeline from the same noise: 12 of 20 steps."""
    folder = write_pipeline(tmp_path, run)
    model, params, settings, cond, _ = prepare(folder, run)
    eps = to_ours(noise())
    monkeypatch.setattr(samplers, "normal", lambda *args, **kwargs: eps)
    videos = picture()[None, None] / np.float32(127.5) - 1
    made = sampling.edit(
        model, params, videos, 1, settings, STRENGTH, sampling.SamplingInputs(cond)
    )
    image = made[:, 0] / 2 + 0.5
    np.testing.assert_allclose(image, RECORDED[f"{run}/image"], atol=1e-3)


def test_what_is_written_back_is_the_folder(folder, tmp_path):
    """Names, shapes and the metadata are those of diffusers, and nothing is lost."""
    loaded = runs.load(folder)
    assert diffusers_export.write(tmp_path, loaded, folder) == ()
    expected: dict = {}
    for path, shapes in recorded_files()["weights"].items():
        part = expected.setdefault(path.split("/")[0], {})
        is_text = path.startswith("text_encoder")
        part |= {f"text_model.{n}" if is_text else n: s for n, s in shapes.items()}
    for part, shapes in expected.items():
        (path,) = (tmp_path / part).glob("*.safetensors")
        with safe_open(path, "numpy") as file:
            found = {n: file.get_slice(n).get_shape() for n in list(file.keys())}
            assert file.metadata() == {"format": "pt"}
        assert found == shapes
    again = runs.load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)
    for path in recorded_files()["texts"]:
        if (folder / path).is_file() and path.endswith("config.json"):
            kept, written = (
                json.loads((f / path).read_text()) for f in (folder, tmp_path)
            )
            assert kept == written
    # As of a run, whose configs are made of its own.
    shutil.rmtree(tmp_path)
    diffusers_export.write(tmp_path, loaded, tmp_path)
    made, read = runs.read_config(tmp_path), loaded.config
    for section in ("video", "network", "diffusion", "discrete", "sample"):
        assert made[section] == read[section]
    prompts = [cascade.read_model(f) for f in (folder, tmp_path)]
    one, two = (cascade.encode_prompts(p, [PROMPT])[0]["text"] for p in prompts)
    np.testing.assert_array_equal(one, two)


def test_a_model_that_diffusers_has_not_is_refused(folder, tmp_path):
    loaded = runs.load(folder)
    loaded.config.diffusion.precondition = True
    with pytest.raises(UserError, match="no discrete schedule, or it is precond"):
        diffusers_export.write(tmp_path, loaded, folder)
    shapes = runs.load("models/shapes")
    with pytest.raises(UserError, match="no image model with network.kind='sd'"):
        diffusers_export.write(tmp_path, shapes, folder)
    assert not any(tmp_path.iterdir())


def test_sample_py_and_edit_py_write_pictures(folder, tmp_path):
    """With one line for what is not read, and one for a text of more than 77 tokens."""
    own = tmp_path / "sd"
    shutil.copytree(folder, own)
    index = json.loads((own / "model_index.json").read_text())
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index |= {"safety_checker": checker}
    (own / "model_index.json").write_text(json.dumps(index))
    out = tmp_path / "out"
    flags = [f"--workdir={own}", "--steps=2", f"--out={out}", "--overwrite"]
    done = call("sample", *flags, f"--prompt={PROMPT}", "--prompt=" + "cat " * 80)
    assert done.returncode == 0, done.stderr
    for line in (
        f"{own}: safety_checker not read",
        f"{own}: 0.8 million parameters, 0.00 GiB",
        "a text of 82 tokens is cut to 77: 'cat cat",
    ):
        assert done.stderr.count(line) == 1, line
    written = sorted(path.name for path in out.iterdir())
    assert written == [
        "samples-000.png", "samples-001.png", "samples.json", "samples.npz",
        "samples.png",
    ]  # fmt: skip
    with np.load(out / "samples.npz") as arrays:
        assert arrays["videos"].shape == (2, 1, 16, 16, 3)
    Image.fromarray(picture()).save(tmp_path / "a.png")
    start = f"--edit={tmp_path / 'a.png'}", "--strength=0.6"
    done = call("edit", *flags, *start, "--prompt=a cat")
    assert done.returncode == 0, done.stderr
    about = json.loads((out / "samples.json").read_text())
    assert about["observation"]["strength"] == 0.6
    assert about["sample"]["steps"] == 2 and about["labels"] == ["a cat"]


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


INDEX, UNET = "model_index.json", "unet/config.json"
SHARD = "unet/diffusion_pytorch_model.fp16-00002-of-00005.safetensors"
OTHERS = {  # message -> the file of the folder, and what is changed there
    "is of 'StableDiffusionXLPipeline': one of": (
        INDEX, {"_class_name": "StableDiffusionXLPipeline"},
    ),
    "is of 'StableDiffusion3Pipeline': one of": (
        INDEX, {"_class_name": "StableDiffusion3Pipeline"},
    ),
    "is of 'FluxPipeline': one of": (INDEX, {"_class_name": "FluxPipeline"}),
    "has text_encoder_2, a part that is not known": (
        INDEX, {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]},
    ),
    "has unet='SD3Transformer2DModel': UNet2DConditionModel": (
        INDEX, {"unet": ["diffusers", "SD3Transformer2DModel"]},
    ),
    "has vae='AutoencoderTiny': AutoencoderKL": (
        INDEX, {"vae": ["diffusers", "AutoencoderTiny"]},
    ),
    "has no text_encoder": (INDEX, {"text_encoder": [None, None]}),
    "with in_channels=9 and out_channels=4: inpainting": (UNET, {"in_channels": 9}),
    "is of 'UNetFlatConditionModel': give a folder of UNet2DConditionModel": (
        UNET, {"_class_name": "UNetFlatConditionModel"},
    ),
    "addition_embed_type='text_time': only None": (
        UNET, {"addition_embed_type": "text_time"},
    ),
    "=14 must be a multiple of 4 (the codec's 2": (UNET, {"sample_size": 7}),
    "latents of 4 channels, its vae makes 16": (
        "vae/config.json", {"latent_channels": 16},
    ),
    "'FlowMatchEulerDiscreteScheduler': one of DDIM": (
        "scheduler/scheduler_config.json",
        {"_class_name": "FlowMatchEulerDiscreteScheduler"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", OTHERS)
def test_another_pipeline_is_refused_by_what_is_not_known(folder, tmp_path, message):
    own = tmp_path / "sd"
    shutil.copytree(folder, own)
    path, changes = OTHERS[message]
    edit_json(own / path, **changes)
    with pytest.raises(UserError) as refusal:
        runs.read_config(own)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_folder_that_lacks_a_file_or_a_part_of_it(folder, tmp_path):
    own = tmp_path / "sd"
    shutil.copytree(folder, own)
    shard = own / SHARD
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"00002-of-00005\.safetensors is not a whole"):
        runs.load(own)
    shard.unlink()
    with pytest.raises(UserError, match="lacks diffusion_pytorch_model.fp16-00002"):
        runs.load(own)
    for path in (own / "vae").glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    shard.write_bytes(whole)
    with pytest.raises(UserError, match=r"\.bin, \.ckpt\) .*from_pretrained\(DIR\)"):
        runs.load(own)
    shutil.rmtree(own / "vae")
    with pytest.raises(UserError, match="lacks the folder vae, which model_index"):
        runs.read_config(own)
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(UserError, match=r"one file: .*from_single_file\(FILE\)"):
        runs.read_config(tmp_path / "model.ckpt")
