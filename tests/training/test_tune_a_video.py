"""An image model is tuned on one clip, and edits it: Tune-A-Video."""

import dataclasses
import json
import re
import shutil
import types
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from configs import tune_a_video
from tests import small_model
from tests.parity.pipeline_cases import write_pipeline
from tests.parity.recorded import FOLDER
from tests.run_command import ROOT, call, refused
from vdm_jax import config_files, data, runs, scalars, video_io
from vdm_jax.checkpoint import Checkpoints
from vdm_jax.commands.export import export_model
from vdm_jax.data import one_clip
from vdm_jax.errors import UserError
from vdm_jax.sampling import observations
from vdm_jax.training import base_model
from vdm_jax.trees import named_leaves

FRAMES = 5
LEVELS = np.random.default_rng(0).integers(40, 216, (20, 1, 1, 3), np.uint8)
VIDEO = LEVELS.repeat(24, 1).repeat(32, 2)  # frames of one colour each


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    video_io.write_video(path, VIDEO, 8)
    return path


def config_of(clip, **fields):
    config = tune_a_video.get_config("smoke").unlock()
    config.video.update(frames=FRAMES, height=16, width=16, channels=3)
    config.data.update(path=str(clip), caption="a cat runs", **fields)
    return config


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """Return the folder of an image model of 8x8 pixels; it has no parameters."""
    folder = tmp_path_factory.mktemp("image")
    config = small_model.controlled_config()
    config.video.fps = 6.0
    (folder / "config.json").write_text(config.to_json_best_effort())
    return folder


def completed(config, image):
    config.init_from = str(image)
    one_clip.fill_in(config, image)
    base_model.complete(config)
    return config


def test_frame_numbers_are_those_of_the_published_program():
    """Where a clip is long enough; there a shorter one gives fewer frames."""
    rows = json.loads((FOLDER / "tune_a_video_frames.json").read_text())
    for row in rows:
        chosen = video_io.FrameSelection(row["n"], row["rate"])
        numbers = chosen.frame_numbers(None, row["start"])  # type: ignore[arg-type]
        inside = numbers[numbers < row["video_frames"]]
        assert inside.tolist() == row["indices"]


def test_a_batch_is_the_clip_over_and_over(clip):
    """As on eight devices, which one example does not divide."""
    source = data.open_source(config_of(clip, batch_size=3))
    assert len(source) == 3
    rng = np.random.default_rng(0)
    first, *others = (source.load(i, rng, FRAMES)["video"] for i in range(3))
    for each in others:
        np.testing.assert_array_equal(each, first)


@pytest.mark.parametrize("stride", [1, 3])
def test_the_source_is_the_first_frames_of_the_clip(clip, stride):
    source = data.open_source(config_of(clip, stride=stride))
    assert (len(source), len(source.split(True))) == (1, 0) and not source.flip
    loaded = source.load(0, np.random.default_rng(0), FRAMES)
    assert loaded["caption"] == "a cat runs"
    frames = VIDEO[::stride][:FRAMES]
    means = loaded["video"].mean((1, 2)), frames.mean((1, 2))
    np.testing.assert_allclose(*means, atol=12)  # through a codec


@pytest.mark.parametrize(
    ("rate", "fields", "fps"),
    [
        (24, {}, 24),
        (30, {"stride": 3}, 10),
        (24, {"target_fps": 10.0}, 10),
        (5, {}, 5),
        (5, {"stride": 2}, 2.5),
        (24, {"written": 6.0}, 6),  # a rate of the files that was set
        (24, {"target_fps": 12.0, "written": 6.0}, 6),
    ],
)
def test_the_edit_reads_the_frames_of_the_tuning(image, tmp_path, rate, fields, fps):
    fields = dict(fields)
    written = fields.pop("written", None)
    path = str(tmp_path / "clip.mp4")
    video_io.write_video(path, VIDEO, rate)
    config = config_of(path, **fields)
    config.video.fps = written
    config = completed(config, image)
    assert config.video.fps == fps
    clip = data.open_source(config).load(0, np.random.default_rng(0), FRAMES)
    model: Any = types.SimpleNamespace(
        video_shape=(FRAMES, 16, 16, 3), normalize=lambda video: video / 127.5 - 1
    )
    output = observations.OutputSpec.of(model, config)
    observation, _ = observations.edit(output, path, None)
    video = np.rint((observation.video[0] + 1) * 127.5)
    np.testing.assert_array_equal(video, clip["video"])


def test_pictures_of_the_model_s_size_are_tuned_on_as_they_are(image, tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, 16, 16, 3), np.uint8)
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{i:03d}.png")
    config = completed(config_of(tmp_path), image)
    np.testing.assert_array_equal(data.open_source(config).video, frames)
    assert config.video.fps == 6.0  # that of the image model


@pytest.mark.parametrize("rate", [5, 24])
def test_an_image_model_reads_a_clip_of_any_rate(tmp_path, rate):
    path = str(tmp_path / "clip.mp4")
    video_io.write_video(path, VIDEO, rate)
    model: Any = types.SimpleNamespace(video_shape=(1, 16, 16, 3))
    output = observations.OutputSpec.of(model, small_model.controlled_config())
    assert output.fps == 8 and len(observations.read_control(output, path)[0]) == (
        20 if rate == 5 else 7
    )
    three = dataclasses.replace(output, num_frames=3)
    _, info = observations.read_control(three, path)
    timing, frames = {
        5: ("every frame (file: 5 fps)", [0, 1, 2]),
        24: ("frames nearest to 8 fps (file: 24 fps)", [0, 3, 6]),
    }[rate]
    assert (info["timing"], info["clip_frames"]) == (timing, frames)
    line = f"{path}: 3 of its 20 frames are used, the rest is ignored; {timing}"
    assert observations.describe(info) == line


def test_what_is_set_wins_whatever_the_defaults_are(clip, image):
    """16 frames of 64x64, 8 per second, are defaults of the fields."""
    config = config_of(clip)
    config.video.update(frames=16, height=64, width=64, fps=8.0)
    config.sample.update(steps=256, guidance_scale=1.0)
    video = completed(config, image).video
    assert (video.frames, video.height, video.fps) == (16, 64, 8.0)
    assert (config.sample.steps, config.sample.guidance_scale) == (256, 1.0)
    assert config.sample.clip_x == 0.0 and config.network.kind == "sd"  # the model's
    flags, default = ["--config.video.frames=16"], tune_a_video.get_config()
    config, _ = config_files.take_config_flags(flags, default)
    assert completed(config, image).video.frames == 16
    config = config_of(clip)
    config.data.mean = 0.5
    with pytest.raises(UserError, match=r"data.mean=0.5: the model .* has -0.3"):
        completed(config, image)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"caption": ""}, "give a video and what it shows"),
        ({"stride": 6}, "too short: 20 frames, a clip spans 25 frames"),
        ({"path": "none.mp4"}, "none.mp4"),
        ({"source": "folder"}, "caption goes with data.source='one_clip'"),
    ],
)
def test_what_is_no_clip_is_one_line(clip, fields, message):
    config = config_of(clip)
    config.data.update(fields)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        data.open_source(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("init_from", "message"),
    [
        ("", "config.init_from='': this config tunes a model: --config.init_from=DIR"),
        ("models/shapes", "for a network of kind 'sd'; models/shapes has 'unet'"),
    ],
)
def test_a_model_that_cannot_be_tuned_is_named(init_from, message):
    config = tune_a_video.get_config().unlock()
    config.init_from = init_from and str(ROOT / init_from)
    with pytest.raises(UserError, match=message.replace("models", ".*models")):
        base_model.complete(config)


@pytest.mark.slow
def test_it_is_tuned_and_edits_the_clip(clip, tmp_path):
    base, run = write_pipeline(tmp_path / "sd"), tmp_path / "run"
    flags = (
        "--config=configs/tune_a_video.py:smoke", f"--config.init_from={base}",
        f"--config.data.path={clip}", f"--config.video.frames={FRAMES}",
    )  # fmt: skip
    captions = (
        "--config.data.caption=a cat runs", "--config.data.edited_caption=a red dog",
    )  # fmt: skip
    done = call("train", *flags, *captions, f"--workdir={run}")
    assert done.returncode == 0, done.stderr
    assert re.search(r"MiB per device at the peak of a step\n(.*\n)*step ", done.stdout)
    steps, distances = scalars.read_scalars(run)["val/edit_distance"]
    [preview] = (run / "samples").glob("*.npz")
    source, edit = np.load(preview)["videos"] / 127.5
    distance = np.sqrt(np.mean((edit - source) ** 2))
    np.testing.assert_allclose(distances, [distance], rtol=1e-5)
    assert steps.tolist() == [4] and distance > 0.01
    resumed = shutil.copytree(run, tmp_path / "resumed")
    shutil.rmtree(resumed / "checkpoints" / "4")  # half of the updates are left
    done = call("train", *flags, *captions, f"--workdir={resumed}")
    assert done.returncode == 0, done.stderr
    whole, resumed = (
        Checkpoints(folder / "checkpoints", read_only=True).arrays(4)
        for folder in (run, resumed)
    )
    assert whole.keys() == resumed.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(array, resumed[name], name)
    before = named_leaves(runs.load(base).params)
    after = named_leaves(runs.load(run).params)
    new = {name for name in after if name not in before}
    assert new and all("/time_" in name for name in new)
    changed = {n for n in before if not np.array_equal(before[n], after[n])}
    queries = {n for n in before if re.search(r"/(self|cross)_attention/q/kernel", n)}
    assert changed == queries
    outputs = [leaf for name, leaf in after.items() if "time_attention/out" in name]
    assert all(leaf.any() for leaf in outputs)
    norms = [name for name in after if "/time_norm/" in name]
    assert all((after[n] == n.endswith("scale")).all() for n in norms)

    edit = f"--workdir={run}", f"--edit={clip}", "--steps=3", "--guidance_scale=1"
    out = tmp_path / "out"
    done = call("edit", *edit, "--prompt=", "--steps=50", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^inversion \d+\.\d s, sampling \d+\.\d s$", done.stdout, re.M)
    made = np.load(out / "samples.npz")["videos"]
    assert made.shape == (1, FRAMES, 16, 16, 3)
    message = refused("edit", *edit, "--sampler=ancestral", f"--out={tmp_path / 'no'}")
    assert "sampler='ancestral': an edit by inversion is sampled by ddim" in message
    fields = json.loads((run / "config.json").read_text())
    fields["sample"]["sampler"] = "dpm"  # as of a folder whose scheduler has no inverse
    (run / "config.json").write_text(json.dumps(fields))
    done = call("edit", *edit, "--prompt=", "--overwrite", f"--out={out}")
    assert done.returncode == 0, done.stderr
    message = refused("edit", *edit, "--num=2", f"--out={tmp_path / 'no'}")
    assert "--num=2: an edit by inversion draws no noise" in message
    message = refused("edit", *edit, "--num_frames=9", f"--out={tmp_path / 'no'}")
    assert "an edit by inversion has the model's 5 frames of 16x16" in message

    export_model(run, tmp_path / "tuned")
    stored = load_file(tmp_path / "tuned" / runs.PARAMS)
    assert stored.keys() == queries | new
    (tmp_path / "moved").mkdir()
    base, tuned = (
        (tmp_path / name).rename(tmp_path / "moved" / name) for name in ("sd", "tuned")
    )
    for name, leaf in named_leaves(runs.load(tuned).params).items():
        kept = np.float16(after[name]) if name in stored else before[name]
        np.testing.assert_array_equal(leaf, kept)
    edit = f"--workdir={tuned}", f"--edit={clip}", "--guidance_scale=1", "--prompt="
    done = call("edit", *edit, "--steps=3", f"--out={tmp_path / 'moved_out'}")
    assert done.returncode == 0, done.stderr
    shard = sorted((base / "unet").glob("*.safetensors"))[0]
    tensors = load_file(shard)
    next(iter(tensors.values())).flat[0] += 1
    save_file(tensors, shard)
    message = refused("edit", *edit, f"--out={tmp_path / 'no'}")
    assert f"what was tuned of the model {base}, whose parameters had" in message
