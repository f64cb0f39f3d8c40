"""A folder of Wan 2.1 as a workdir: it samples what diffusers samples with it."""

import gc
import json
import shutil
import weakref

import jax
import numpy as np
import pytest

from tests.networks.small_wan import to_ours
from tests.parity.wan_pipeline_cases import (
    ARRAYS,
    FRAMES,
    HEIGHT,
    NEGATIVE,
    PROMPT,
    RECORDED_FRAMES,
    RUNS,
    SCALE,
    STEPS,
    WIDTH,
    noise,
    write_pipeline,
)
from tests.run_command import call, refused
from tests.test_diffusers_folder import count_of
from tests.test_meshes import call as call_on
from vdm_jax import build, cascade, diffusers_folder, memory, runs, sampling
from vdm_jax.diffusion import process, schedules
from vdm_jax.errors import UserError

RECORDED = np.load(ARRAYS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pipeline(tmp_path_factory.mktemp("pipeline") / "wan")


def small(config):
    """Return the model of a config for the recorded size."""
    config.video.update(frames=FRAMES, height=HEIGHT, width=WIDTH)
    return build.build_model(config)


@pytest.mark.parametrize("run", RUNS)
def test_it_samples_the_video_of_diffusers(tmp_path, run):
    """UniPC and Euler from the same noise, with guidance against "" and a text."""
    own = write_pipeline(tmp_path, run)
    read, negative = cascade.read_model(own), RUNS[run][2]
    cond, negatives = cascade.encode_conditions(
        read, 1, prompts=[PROMPT], negative_prompt=negative
    )
    assert (negatives is None) == (negative != NEGATIVE)
    loaded = runs.load(own)
    model = small(loaded.config)
    settings = read.stages[0].with_settings(steps=STEPS).settings
    assert settings.guidance_scale == SCALE
    inputs = sampling.SamplingInputs(cond, negatives, initial_noise=to_ours(noise()))
    z = sampling.generate(model, loaded.params, 1, settings, inputs)
    expected = to_ours(RECORDED[f"{run}/latents"])
    error = np.abs(z - expected).max() / expected.std()
    print(run, error)
    assert error < 1e-3
    video = sampling.decode(model, loaded.params, z)[0, RECORDED_FRAMES]
    np.testing.assert_allclose(video / 2 + 0.5, RECORDED[f"{run}/frames"], atol=1e-3)


def test_the_folder_is_a_model_of_videos(folder):
    """diffusers' defaults; the scheduler's shift is in the schedule, once."""
    config = runs.read_config(folder)
    assert config.video.to_dict() == {
        "frames": 81, "height": 480, "width": 832, "channels": 3, "fps": 16.0,
    }  # fmt: skip
    assert config.sample.sampler == "unipc" and config.sample.steps == 50
    assert config.network.kind == "wan" and config.conditioning.text_dim == 20
    assert config.network.remat == "full"  # of so many tokens
    model = build.build_model(config)
    assert model.shape == (21, 60, 104, 4) and model.reads_flow_state
    level = schedules.noise_level(model.schedule, np.float64(0.5))
    assert process.flow_time(level) == pytest.approx(0.75)
    assert model.training_schedule == model.schedule


def test_on_an_accelerator_it_is_in_bfloat16(folder, monkeypatch):
    monkeypatch.setattr(diffusers_folder, "default_dtype", lambda: "bfloat16")
    loaded = runs.load(folder)
    model = small(loaded.config)
    assert model.network.spec.dtype == "bfloat16"
    z = np.asarray(to_ours(noise()))
    cond = model.null_conditions((1,))
    settings = sampling.Settings(2, "unipc", clip_x=0.0)
    inputs = sampling.SamplingInputs(cond, initial_noise=z)
    half = sampling.generate(model, loaded.params, 1, settings, inputs)
    loaded.config.network.dtype = "float32"
    exact = sampling.generate(small(loaded.config), loaded.params, 1, settings, inputs)
    assert 1e-5 < np.std(half - exact) < 0.05 * exact.std()


def test_sample_py_writes_videos_of_other_sizes(folder, tmp_path):
    out = tmp_path / "out"
    flags = [f"--workdir={folder}", "--steps=2", f"--out={out}", "--prompt=a red cat"]
    done = call("sample", *flags, "--size=16x32", "--num_frames=5")
    assert done.returncode == 0, done.stderr
    assert "5x16x32: the model was trained at 81x480x832" in done.stdout
    with np.load(out / "samples.npz") as arrays:
        assert arrays["videos"].shape == (1, 5, 16, 32, 3)
    about = json.loads((out / "samples.json").read_text())
    assert about["sample"]["sampler"] == "unipc" and about["labels"] == ["a red cat"]
    for more, message in (
        (["--num_frames=15"], "15 frames: frames 4k+1: 13 or 17"),
        (["--size=24x32"], "video.height=24 must be a multiple of 16 (the codec's 8 *"),
        (["--size=20x32"], "height=20 must be a multiple of 8"),
    ):
        assert message in refused("sample", *flags[:1], f"--out={tmp_path}/new", *more)
        assert not (tmp_path / "new").exists()


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


INDEX, TRANSFORMER = "model_index.json", "transformer/config.json"
SCHEDULER, VAE = "scheduler/scheduler_config.json", "vae/config.json"
OTHERS = {  # message -> the file of the folder, and what is changed there
    "is of 'WanImageToVideoPipeline': one of": (
        INDEX, {"_class_name": "WanImageToVideoPipeline"},
    ),
    "has transformer_2, a part that is not known": (
        INDEX, {"transformer_2": ["diffusers", "WanTransformer3DModel"]},
    ),
    "has transformer='WanVACETransformer3DModel': WanTransformer3DModel": (
        INDEX, {"transformer": ["diffusers", "WanVACETransformer3DModel"]},
    ),
    "is of 'FluxTransformer2DModel': give a folder of WanTransformer3DModel": (
        TRANSFORMER, {"_class_name": "FluxTransformer2DModel"},
    ),
    "transformer/config.json: WanTransformer3DModel with image_dim=1280: only": (
        TRANSFORMER, {"image_dim": 1280},
    ),
    "latents of 4 channels, its vae makes 3": (
        VAE, {"z_dim": 3, "latents_mean": [0.0] * 3, "latents_std": [1.0] * 3},
    ),
    "config.json: AutoencoderKLWan with is_residual=True": (VAE, {"is_residual": True}),
    "scheduler_config.json: _class_name='DDIMScheduler': UniPCMultistepScheduler or": (
        SCHEDULER, {"_class_name": "DDIMScheduler"},
    ),
    "scheduler_config.json: use_flow_sigmas=False: True": (
        SCHEDULER, {"use_flow_sigmas": False},
    ),
    "scheduler_config.json: solver_order=3: 2": (SCHEDULER, {"solver_order": 3}),
    "config.json: flow_shift=0.0: a number from": (SCHEDULER, {"flow_shift": 0}),
}  # fmt: skip


@pytest.mark.parametrize("message", OTHERS)
def test_another_folder_is_refused_by_what_is_not_known(folder, tmp_path, message):
    own = shutil.copytree(folder, tmp_path / "wan")
    path, changes = OTHERS[message]
    edit_json(own / path, **changes)
    with pytest.raises(UserError) as refusal:
        runs.read_config(own)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_the_text_encoder_and_the_others_are_not_in_memory_together(
    folder, monkeypatch
):
    """So that the memory needed is that of the larger of the two."""
    read = cascade.read_model(folder)
    text = count_of(folder, "text_encoder")
    most = 4 * max(text, count_of(folder) - text)
    monkeypatch.setattr(memory, "memory_limit", lambda: most)
    kept = []
    load = cascade.text_encoders.load_encoder

    def watched(*args, **kwargs):
        encoder = load(*args, **kwargs)
        kept.extend(map(weakref.ref, jax.tree.leaves(encoder.params)))
        return encoder

    with monkeypatch.context() as patch:
        patch.setattr(cascade.text_encoders, "load_encoder", watched)
        cascade.encode_prompts(read, ["a cat"])
    gc.collect()
    assert kept and all(each() is None for each in kept)
    monkeypatch.setattr(memory, "memory_limit", lambda: most - 1)
    with pytest.raises(UserError, match=f"{folder}: .* GiB of memory needed"):
        cascade.encode_prompts(read, ["a cat"])


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["context=2,fsdp=2", "tensor=2"])
def test_eight_devices_sample_as_one(folder, tmp_path, mesh):
    """Frames of tokens, parameters and channels are split; in float64."""
    videos = []
    for devices, own in ((1, ""), (8, mesh)):
        out = tmp_path / str(devices)
        size = "--size=16x32", "--num_frames=5", "--steps=2", "--prompt=a red cat"
        flags = f"--workdir={folder}", f"--out={out}", f"--mesh={own}", *size
        call_on(devices, True, "sample.py", *flags, "--num=2")
        with np.load(out / "samples.npz") as arrays:
            videos.append(arrays["videos"].astype(int))
    assert videos[0].std() > 1 and np.abs(videos[0] - videos[1]).max() <= 1
