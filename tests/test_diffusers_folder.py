"""A folder of diffusers as a workdir: it samples what diffusers samples with it."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from configs import finetune_image
from tests.parity import sprites_case
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
from tests.parity.written_pipeline import (
    WRITTEN,
    WRITTEN_ARRAYS,
    checksums,
    write_back,
)
from tests.run_command import call, refused
from vdm_jax import (
    adapters,
    cascade,
    diffusers_export,
    diffusers_folder,
    latents,
    memory,
    runs,
    sampling,
)
from vdm_jax.conditions.text import NULL_TEXT
from vdm_jax.diffusion import samplers
from vdm_jax.errors import UserError
from vdm_jax.pretrained import safetensors_io, sd_scheduler, sd_unet
from vdm_jax.training.train import train
from vdm_jax.trees import named_leaves

RECORDED = np.load(ARRAYS)
SPRITES = Path(__file__).parents[1] / "models" / "sprites"


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
    """Half precision, the U-Net in five shards, three schedulers; from the same noise.

    One run has a negative prompt, and the names of older folders.
    """
    folder = write_pipeline(tmp_path, run, former_names=run == "ddim_v")
    check_sample(folder, run, RECORDED, run)


def check_sample(folder, run, recorded, name):
    """Compare latents and image of a run with those that are recorded by a name."""
    model, params, settings, cond, negative = prepare(folder, run)
    assert (negative is None) == (RUNS[run][2] != NEGATIVE)
    inputs = sampling.SamplingInputs(cond, negative, initial_noise=to_ours(noise()))
    z = sampling.generate(model, params, 1, settings, inputs)
    latents = to_ours(recorded[f"{name}/latents"])
    np.testing.assert_allclose(z, latents, atol=1e-3 * latents.std())
    videos = model.codec.decode_on_host(z, params["codec"])
    image = np.clip(videos[:, 0] / 2 + 0.5, 0, 1)
    np.testing.assert_allclose(image, recorded[f"{name}/image"], atol=1e-3)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("written")
    write_back(root)
    return root


@pytest.mark.parametrize("name, run", WRITTEN.items())
def test_what_is_written_back_is_sampled_alike_by_diffusers(written, name, run):
    """It was read by diffusers and transformers, the text encoder and all."""
    with np.load(WRITTEN_ARRAYS) as arrays:
        recorded = dict(arrays)
    # Another folder than the recorded one: record it again.
    assert checksums(written) == recorded["checksums"].tolist()
    check_sample(written / name, run, recorded, name)


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
    schedule = dataclasses.replace(loaded.model.schedule, steps_offset=0)
    model = dataclasses.replace(loaded.model, schedule=schedule)
    with pytest.raises(UserError, match="Pipeline has discrete.steps_offset=1"):
        diffusers_export.write(tmp_path, loaded._replace(model=model), folder)
    with loaded.config.network.unlocked():
        loaded.config.network.patch_size = 2
    with pytest.raises(UserError, match="diffusers: its network.patch_size is above 1"):
        diffusers_export.write(tmp_path, loaded, folder)
    loaded.config.diffusion.precondition = True
    with pytest.raises(UserError, match="no discrete schedule, or it is precond"):
        diffusers_export.write(tmp_path, loaded, folder)
    shapes = runs.load("models/shapes")
    with pytest.raises(UserError, match="no image model with network.kind='sd'"):
        diffusers_export.write(tmp_path, shapes, folder)
    assert not any(tmp_path.iterdir())


def count_of(folder, part="*"):
    """Return how many numbers the weights of a folder have."""
    return sum(
        array.size
        for path in folder.glob(f"{part}/*.safetensors")
        for array in load_file(path).values()
    )


def test_the_memory_for_all_parts_is_stated_before_one_is_read(
    folder, tmp_path, monkeypatch, capsys
):
    own = shutil.copytree(folder, tmp_path / "sd")
    read = cascade.read_model(own)

    def refuse(*_, **__):
        raise AssertionError("the text encoder was read")

    with monkeypatch.context() as patch, pytest.raises(AssertionError):
        patch.setattr(cascade.text_encoders, "load_encoder", refuse)
        cascade.encode_prompts(read, [PROMPT])
    line = f"{own}: {count_of(own) / 1e6:.1f} million parameters, 0.00 GiB, "
    line += "and more while it samples\n"
    assert capsys.readouterr().err == line
    runs.load(own)
    assert line not in capsys.readouterr().err
    text = count_of(own, "text_encoder")  # gone before the others are read
    need = 4 * max(text, count_of(own) - text)
    monkeypatch.setattr(memory, "memory_limit", lambda: need - 1)
    with pytest.raises(UserError, match=f"{own}: .* GiB of memory needed"):
        cascade.encode_prompts(read, [PROMPT])


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
        f"{own}: {count_of(own) / 1e6:.1f} million parameters, 0.00 GiB, "
        "and more while it samples",
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


def test_the_last_layer_of_the_text_can_be_skipped(folder, tmp_path):
    """It is a flag of sample.py; the whole folder is as it was."""
    videos = []
    for flags in ([], ["--clip_skip=0"], ["--clip_skip=1"]):
        out = f"--out={tmp_path / str(len(videos))}"
        flags += [f"--workdir={folder}", "--prompt=a cat", "--steps=2", out]
        done = call("sample", *flags)
        assert done.returncode == 0, done.stderr
        videos.append(np.load(tmp_path / str(len(videos)) / "samples.npz")["videos"])
    np.testing.assert_array_equal(videos[0], videos[1])
    assert (videos[0] != videos[2]).any()


@pytest.mark.parametrize(
    "part, name, message",
    [
        (
            "unet", "conv_in.bias",
            "the network gives values that are not finite in 2 of 2 videos, first in "
            "frames 0 of video 0: compute in float32",
        ),
        (
            "vae", "decoder.mid_block.resnets.0.conv1.bias",
            "decoder gives values that are not finite in frames 0, 1 of 2: compute",
        ),
    ],
)  # fmt: skip
def test_nothing_is_written_of_what_is_not_finite(tmp_path, part, name, message):
    own, out = write_pipeline(tmp_path / "sd"), tmp_path / "out"
    for path in (own / part).glob("*.safetensors"):
        tensors = {k: a.astype(np.float32) for k, a in load_file(path).items()}
        if name in tensors:
            tensors[name][:] = 3e38
        save_file(tensors, path)
    flags = [f"--workdir={own}", "--prompt=a cat", "--num=2", "--steps=1"]
    assert message in refused("sample", *flags, f"--out={out}")
    assert not list(out.glob("*"))


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("own, given", [("ddim", "x"), ("ddim_v", "eps")])
def test_a_folder_is_tuned_as_it_predicts(tmp_path, own, given):
    config = finetune_image.get_config("smoke")
    config.init_from = str(write_pipeline(tmp_path / "sd", own))
    base = runs.read_config(config.init_from).diffusion.prediction_type
    config.diffusion.prediction_type = given
    message = f"prediction_type={given!r}: the model .*, which is tuned, has {base!r}$"
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run")


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
    "unet/config.json: UNet2DConditionModel with sample_size=None": (
        UNET, {"sample_size": None},
    ),
    "latents of 4 channels, its vae makes 16": (
        "vae/config.json", {"latent_channels": 16},
    ),
    "discrete.beta_start=0 and beta_end=0: one above 0": (
        "scheduler/scheduler_config.json", {"beta_start": 0, "beta_end": 0},
    ),
    "'FlowMatchEulerDiscreteScheduler': DDIM": (
        "scheduler/scheduler_config.json",
        {"_class_name": "FlowMatchEulerDiscreteScheduler"},
    ),
}  # fmt: skip


def test_what_the_pipeline_replaces_and_what_is_not_read_are_lines(tmp_path, capsys):
    """As StableDiffusionPipeline.__init__ of diffusers 0.42.1 does."""
    own = write_pipeline(tmp_path, "dpm")
    expected = runs.load(own).config
    assert capsys.readouterr().err.count("\n") == 1
    assert (expected.discrete.steps_offset, expected.video.height) == (1, 16)
    scheduler = own / "scheduler/scheduler_config.json"
    edit_json(scheduler, steps_offset=0, use_karras_sigmas=True, solver_order=2)
    assert runs.load(own).config == expected
    line = f"{own}/scheduler has steps_offset=0: 1 is used, as by StableDiffusionPip"
    err = capsys.readouterr().err
    assert err.count(line) == 1 and err.count("\n") == 2
    assert err.count(f"{scheduler}: use_karras_sigmas=True not read\n") == 1
    for version, size in {"0.8.1": 64, "0.9.0": 8, "0.10.2": 8, "0.42.1": 8}.items():
        edit_json(own / UNET, _diffusers_version=version)
        assert runs.read_config(own).video.height == 2 * size
    edit_json(own / UNET, _diffusers_version="0.8.1")
    runs.load(own)
    line = f"{own}/unet has sample_size=8: 64 is used, as by StableDiffusionPipeline"
    assert capsys.readouterr().err.count(line) == 1


@pytest.mark.parametrize(("kind", "method"), sd_scheduler.OTHER_METHODS.items())
def test_a_method_that_is_not_written_is_a_line(tmp_path, capsys, kind, method):
    """PNDM is what the published folders of version 1 name."""
    own = write_pipeline(tmp_path)
    path = own / "scheduler/scheduler_config.json"
    edit_json(path, _class_name=kind)
    assert runs.load(own).config.sample.sampler == "ddim"
    line = f"{path}: {kind} is sampled by ddim on its timesteps, not by {method}\n"
    assert capsys.readouterr().err.count(line) == 1


def test_on_an_accelerator_it_is_in_bfloat16(folder, monkeypatch):
    """And its picture is nearly that of float32."""
    images = []
    for backend, dtype in (("cpu", "float32"), ("gpu", "bfloat16")):
        with monkeypatch.context() as patch:
            patch.setattr(diffusers_folder.jax, "default_backend", lambda b=backend: b)
            config = runs.read_config(folder)
        assert config.network.dtype == dtype
        with monkeypatch.context() as patch:
            patch.setattr(diffusers_folder, "default_dtype", lambda d=dtype: d)
            model, params, settings, cond, _ = prepare(folder, "ddim")
        inputs = sampling.SamplingInputs(cond, initial_noise=to_ours(noise()))
        images.append(sampling.sample(model, params, 1, settings, inputs))
    error = np.abs(images[1] - images[0]).mean() / images[0].std()
    assert 1e-4 < error < 0.1


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


def test_what_is_no_whole_folder_is_refused_by_naming_the_whole(
    folder, tmp_path, monkeypatch
):
    for path in (folder / part for part in ("unet", "vae", "tokenizer", INDEX, SHARD)):
        message = f"{path} is a part of a model .*: give the whole, {folder}, which"
        with pytest.raises(UserError, match=message):
            runs.read_config(path)
    monkeypatch.chdir(folder / "vae")
    with pytest.raises(UserError, match=f"is a part .* {folder}, which has"):
        runs.read_config(Path("."))
    with pytest.raises(UserError, match=f"is a whole pipeline: give its {folder}/vae"):
        latents.read_config(folder)


def test_a_refusal_leaves_no_folder(folder, tmp_path):
    """Also those that come when the conditions, a picture or the weights are read."""
    own = shutil.copytree(folder, tmp_path / "sd")
    tensors = load_file(own / SHARD)
    name = next(iter(tensors))
    save_file(tensors | {name: np.full_like(tensors[name], np.nan)}, own / SHARD)
    (tmp_path / "cut.png").write_bytes(b"")
    out = tmp_path / "a" / "out"
    flags = f"--workdir={own}", f"--out={out}", "--prompt=a cat"
    for command, own_flags, message in (
        ("sample", ["--clip_skip=5"], "clip_skip=5: of"),
        ("edit", ["--interpolate=a.mp4"], "makes 1 frame at a time"),
        ("edit", ["--strength=.5", f"--edit={tmp_path / 'cut.png'}"], "cut.png"),
        ("sample", ["--steps=2"], f"{name} is not finite"),
    ):
        assert message in refused(command, *flags, *own_flags)
        assert not out.parent.exists()


def test_the_shipped_model_of_sprites_is_sampled_alike_by_diffusers(tmp_path):
    """Diffusers read the folder that is written of it; the embeddings are the same."""
    trained = runs.load(SPRITES)
    recorded = np.load(sprites_case.ARRAYS)
    text, empty = sprites_case.embeddings()
    mask = np.ones(text.shape[:2], bool)
    null = dict(zip(NULL_TEXT, (empty, mask), strict=True))
    cond = {"text": text, "text_mask": mask, **null}
    settings = sampling.Settings(
        sprites_case.STEPS, "ddim", guidance_scale=sprites_case.SCALE
    )
    inputs = sampling.SamplingInputs(cond, initial_noise=to_ours(sprites_case.noise()))
    z = sampling.generate(trained.model, trained.params, 1, settings, inputs)
    assert abs(z - to_ours(recorded["latents"])).max() < 1e-3
    video = sampling.decode(trained.model, trained.params, z)
    assert abs(video[:, 0] / 2 + 0.5 - recorded["image"]).max() < 1e-3
    modules = adapters.unet_modules(trained.model, trained.config)
    assert "down_blocks.1.attentions.0.proj_in" in modules  # for a LoRA
    absent = diffusers_export.write(tmp_path / "sd", trained, SPRITES)
    assert absent == ("text_encoder", "tokenizer")
    names = sd_unet.unet_names(trained.config.network.to_dict())
    files = diffusers_folder.network_files(tmp_path / "sd")
    written = safetensors_io.read_by_names(
        files, {k: v for k, v in trained.params.items() if k != "codec"}, names, "f4"
    )
    for name, leaf in named_leaves(written).items():
        stored = named_leaves(trained.params)[name]
        np.testing.assert_array_equal(leaf, stored)  # it ships in half precision
