"""Cascades: the file that names the stages, and sampling prompts through them."""

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from typing import Any, NamedTuple, cast

import numpy as np
import pytest

from configs import shapes
from tests.run_command import ROOT, call
from tests.small_model import write_model
from vdm_jax import cascade, cascade_file
from vdm_jax.data import shapes as shapes_data
from vdm_jax.errors import UserError
from vdm_jax.evaluators import sections
from vdm_jax.metrics.shape_scores import SHAPES
from vdm_jax.model import DiffusionModel
from vdm_jax.report import page
from vdm_jax.settings import section_dict
from vdm_jax.settings.sections import Stage

SIZES = {"base": (2, 8, 8), "tsr": (4, 8, 8), "ssr": (4, 16, 16)}
FILE = """
[[stage]]
name = "base"
workdir = "base"
steps = 2

[[stage]]
name = "tsr"
workdir = "tsr"
steps = 3
augmentation_snr = 3

[[stage]]
name = "ssr"
workdir = "ssr"
steps = 2
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three tiny shipped models of random parameters, and their cascade file."""
    folder = tmp_path_factory.mktemp("cascade")
    for name, (frames, height, width) in SIZES.items():
        config = shapes.get_config("smoke").unlock()
        config.video.update(frames=frames, height=height, width=width, fps=frames)
        config.data.update(label_vocabulary=(), mean=-0.3, variance=0.2)
        config.conditioning.label_dropout = 0.0
        config.sample.update(guidance_scale=1.0, batch_size=2)
        if name != "base":
            config.stage = section_dict(Stage(name, augmentation_time=(0.0, 0.5)))
        config.network.update(
            levels=(dict(channels=8, blocks=1, layers=("temporal_conv",)),),
            mid_layers=(),
        )
        write_model(folder / name, config)
    (folder / cascade_file.CASCADE_FILE).write_text(FILE)
    return folder


def test_a_cascade_is_read_from_its_folder_or_its_file(folder):
    for path in (folder, folder / cascade_file.CASCADE_FILE):
        read = cascade.read(path)
        assert [stage.name for stage in read.stages] == list(SIZES)
        assert [stage.settings.steps for stage in read.stages] == [2, 3, 2]
        snrs = [stage.settings.augmentation_snr for stage in read.stages[1:]]
        assert snrs == [3, 5]
        assert cascade.nfe(read) == 7
    assert [stage.name for stage in read.truncate("tsr").stages] == ["base", "tsr"]
    changed = read.with_sampling({"steps": 9})
    assert [stage.settings.steps for stage in changed.stages] == [9] * 3


def test_a_file_with_old_names_of_settings_is_read(folder):
    """As version 0.1 wrote it: its guidance is VDM's weight w = s - 1."""
    path = folder / "old.toml"
    path.write_text(FILE.replace("augmentation_snr", "snr"))
    assert cascade.read(path) == dataclasses.replace(
        cascade.read(folder / cascade_file.CASCADE_FILE), path=path
    )
    path.write_text(FILE + "guidance = 0.0\nguidance_schedule = 'constant'\n")
    assert cascade.read(path).stages[2].settings.guidance_scale == 1.0


def test_every_stage_takes_the_output_of_the_previous(folder):
    read = cascade.read(folder)
    reports = []
    videos = cascade.sample(read, 2, seed=3, progress=lambda *at: reports.append(at))
    assert {k: v.shape[1:4] for k, v in videos.items()} == SIZES
    assert reports == [("base", 2, 2), ("tsr", 3, 3), ("ssr", 2, 2)]
    from_base = cascade.sample(
        cascade.Cascade(read.path, read.stages, ""),
        2,
        seed=3,
        base_videos=videos["base"],
    )
    np.testing.assert_array_equal(from_base["ssr"], videos["ssr"])
    other = cascade.sample(read, 2, seed=3, base_videos=-videos["base"])
    assert abs(other["ssr"] - videos["ssr"]).mean() > 1e-3


def test_each_stage_has_its_own_noise(folder, monkeypatch):
    """By its index in the cascade, also where base videos replace the first stage."""
    calls = {}

    def sample(model, params, num, settings, inputs, run):
        low_resolution = inputs.cond.get("low_resolution")
        index = run.seed, run.stage, run.first_video
        calls[model.shape[:3]] = (*index, low_resolution)
        return np.full((num, *model.shape), 0.1 * run.stage)

    monkeypatch.setattr(cascade.sampling, "sample", sample)
    read = cascade.read(folder)
    videos = cascade.sample(read, 2, seed=3, first_index=5)
    whole = calls.copy()
    assert [whole[size][:3] for size in SIZES.values()] == [
        (3, index, 5) for index in range(3)
    ]
    for previous, name in zip(["base", "tsr"], ["tsr", "ssr"], strict=True):
        assert whole[SIZES[name]][3] is videos[previous]
    calls.clear()
    cascade.sample(read, 2, seed=3, first_index=5, base_videos=videos["base"])
    assert [calls[SIZES[name]][:3] for name in ("tsr", "ssr")] == [(3, 1, 5), (3, 2, 5)]


def test_every_stage_gets_the_text_and_guided_ones_the_negative_text(
    folder, monkeypatch
):
    texts = {}

    def sample(model, params, num, settings, inputs, run):
        texts[model.shape[:3]] = (inputs.cond["text"], inputs.negative)
        return np.zeros((num, *model.shape))

    monkeypatch.setattr(cascade.sampling, "sample", sample)
    monkeypatch.setattr(
        cascade.sampling, "uses_cfg", lambda _, settings: settings.augmentation_snr == 3
    )
    monkeypatch.setattr(DiffusionModel, "batch_arrays", {"text"})
    text = {"text": "text"}  # words in place of arrays, which are only passed on
    away = {"text": "away"}
    cascade.sample(cascade.read(folder), 1, cast(Any, text), cast(Any, away))
    for name, size in SIZES.items():
        assert texts[size] == ("text", away if name == "tsr" else None)


def test_the_seed_and_a_videos_index_decide_all_of_its_noise(folder):
    read = cascade.read(folder)
    three = cascade.sample(read, 3, seed=3)["ssr"]
    second = cascade.sample(read, 1, seed=3, first_index=1)["ssr"]
    np.testing.assert_allclose(second[0], three[1], atol=1e-4)
    assert abs(cascade.sample(read, 1, seed=4)["ssr"] - three[:1]).mean() > 1e-2


WRONG = {
    "no cascade": None,
    "is not TOML": "[[stage",
    "is not TOML: larger than": ".".join("a" * 100_000),
    "names no stage": "",
    "unknown field 'stages': did you mean stage?": "[[stages]]\nname = 'a'",
    "stage 1: it needs a workdir": "[[stage]]\nname = 'a'",
    "stage 3: unknown field 'step': did you mean steps?": FILE + "step = 4",
    "name='../a': letters, digits": FILE.replace('name = "tsr"', 'name = "../a"'),
    "steps='many': an integer from 1": FILE.replace("steps = 3", "steps = 'many'"),
    "nowhere is not a run": FILE.replace('workdir = "tsr"', 'workdir = "nowhere"'),
    "steps=0: an integer from 1 to": FILE.replace("steps = 3", "steps = 0"),
    "augmentation_snr=0.2: this stage was trained with 1 to inf": FILE.replace(
        "snr = 3", "snr = 0.2"
    ),
    "augmentation_snr is for super-resolution stages": FILE.replace(
        "= 2", "= 2\naugmentation_snr = 3", 1
    ),
    "stage 2: ancestral_gamma goes with sampler=ancestral": FILE.replace(
        "steps = 3", "ancestral_gamma = 0.2"
    ),
    "unknown field 'reconstruction_weight'": FILE + "reconstruction_weight = 1.0",
    "untrained holds no checkpoint yet": FILE.replace(
        'workdir = "ssr"', 'workdir = "untrained"'
    ),
    "two stages are called tsr": FILE.replace('name = "ssr"', 'name = "tsr"'),
    "stage tsr is a base model": FILE.replace(
        'workdir = "tsr"', 'workdir = "base"'
    ).replace("augmentation_snr = 3", ""),
    "the first stage, base, is a super-resolution stage": FILE.replace(
        'workdir = "base"', 'workdir = "tsr"'
    ),
    "stage tsr takes videos of (4, 8, 8, 3), and base before it makes (2, 8, 8, 3)": (
        FILE.replace('workdir = "tsr"', 'workdir = "ssr"')
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_file_is_refused_with_a_hint(folder, message):
    (folder / "untrained").mkdir(exist_ok=True)
    shutil.copy(folder / "ssr" / "config.json", folder / "untrained")
    path = folder / "wrong.toml"
    path.unlink(missing_ok=True)
    if WRONG[message] is not None:
        path.write_text(WRONG[message])
    with pytest.raises(UserError) as error:
        cascade.read(path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_stage_and_an_unused_text_are_refused(folder):
    read = cascade.read(folder)
    with pytest.raises(UserError, match="stage 'ssr2': .* has base, tsr, ssr"):
        read.truncate("ssr2")
    with pytest.raises(UserError, match="trained without text"):
        cascade.encode_prompts(read, ["a red square"])
    assert cascade.encode_prompts(read, ["", ""]) == ({}, {})


@pytest.mark.parametrize(
    "dim, sha256, fits",
    [(384, "others", False), (512, "", False), (384, "", True), (384, "those", True)],
)
def test_another_text_encoder_is_refused(monkeypatch, dim, sha256, fits):
    """By the hash of its weights where a stage recorded it, and always by its width."""
    read = cascade.read(ROOT / "cascades" / "shapes")
    text = np.zeros((2, 2, dim)), np.ones((2, 2), bool)
    monkeypatch.setattr(
        cascade.text_encoders, "load_encoder", lambda *_, **__: Encoder(dim, text)
    )
    read.stages[3].config.conditioning.text_encoder_sha256 = sha256
    if fits:
        embeddings, negative = cascade.encode_prompts(read, ["a red square"])
        assert embeddings["text"].shape == (1, 2, dim) and not negative
        return
    with pytest.raises(UserError, match="minilm is not the text encoder that"):
        cascade.encode_prompts(read, ["a red square"])


class Encoder(NamedTuple):
    dim: int
    text: tuple

    def sha256(self):
        return "those"

    def __call__(self, texts):
        return *self.text, None


def test_settings_apply_to_all_stages_and_one_must_use_them(folder):
    read = cascade.read(folder)
    changed = read.with_sampling({"augmentation_snr": 10.0, "steps": 7})
    assert [stage.settings.steps for stage in changed.stages] == [7, 7, 7]
    assert changed.stages[1].settings.augmentation_snr == 10.0
    with pytest.raises(UserError, match="s_churn goes with sampler=heun"):
        read.with_sampling({"s_churn": 1.0})
    with pytest.raises(UserError, match="augmentation_snr is for super-resolution"):
        read.truncate("base").with_sampling({"augmentation_snr": 10.0})


def test_a_negative_text_needs_guidance(folder):
    read = cascade.read(folder)
    text = {"text": np.zeros((1, 1, 4)), "text_mask": np.ones((1, 1), bool)}
    with pytest.raises(UserError, match="negative .* needs a guidance_scale above 1"):
        cascade.sample(read, 1, negative=text)


def test_sample_py_writes_the_videos_of_every_stage(folder, tmp_path):
    out = tmp_path / "out"
    done = call("sample", f"--cascade={folder}", f"--out={out}", "--num=2")
    assert done.returncode == 0, done.stderr
    for name, size in SIZES.items():
        with np.load(out / name / "samples.npz") as kept:
            assert kept["videos"].shape == (2, *size, 3)
    assert done.stdout.splitlines()[-1].startswith(f"2 videos in {out}/ssr; see")
    # A report shows each prompt with its videos of every stage.
    (section,) = sections.sample_sections([out])
    assert [len(grid.videos) for grid in section.stages] == [2, 2, 2]
    assert [grid.caption.split(":")[0] for grid in section.stages] == list(SIZES)
    html = page.render("title", "summary", [section])
    assert html.count("<img") == 6 and "tsr: 4 x 8 x 8" in html
    # Videos of another command are not shown with these prompts.
    about = out / "tsr" / "samples.json"
    about.write_text(about.read_text().replace("--num=2", "--num=3"))
    (section,) = sections.sample_sections([out / "ssr"])
    assert [grid.caption.split(":")[0] for grid in section.stages] == ["base", "ssr"]


def test_a_stage_is_written_when_it_ends(folder, tmp_path):
    """A kill later loses nothing; the same command replaces it if requested."""
    slow = folder / "slow.toml"
    slow.write_text(FILE.removesuffix("steps = 2\n") + "steps = 1024\n")
    out = tmp_path / "out"
    flags = [f"--cascade={slow}", f"--out={out}", "--num=2"]
    process = subprocess.Popen([sys.executable, "sample.py", *flags], cwd=ROOT)
    written = out / "tsr" / "samples.json"  # the last file of a stage
    while not written.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not any((out / "ssr").glob("samples*"))
    alone = call("sample", f"--cascade={folder}", f"--out={tmp_path}/b", "--num=2")
    assert alone.returncode == 0, alone.stderr
    for name in ("base", "tsr"):
        kept, same = (np.load(f / name / "samples.npz") for f in (out, tmp_path / "b"))
        np.testing.assert_array_equal(kept["videos"], same["videos"])
    done = call("sample", *flags)
    assert done.returncode == 2
    assert f"{out}/base already holds samples" in done.stderr.splitlines()[-1]
    again = [f"--cascade={folder}", *flags[1:], "--overwrite"]
    assert call("sample", *again).returncode == 0
    assert (out / "ssr" / "samples.json").exists()


def test_stages_are_handed_on_as_they_end(folder):
    read, made = cascade.read(folder), []

    def fail(name, done, total):
        if name == "ssr":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cascade.sample(
            read, 1, progress=fail, on_stage=lambda *stage: made.append(stage)
        )
    assert [stage.name for stage, *_ in made] == ["base", "tsr"]
    for stage, trained, videos in made:
        assert videos.shape == (1, *trained.model.shape) and trained.step == -1
        assert trained.model == stage.model


def test_stages_have_the_same_labels(folder, tmp_path):
    for name, values in (("base", ("a", "b")), ("tsr", ("a", "c"))):
        shutil.copytree(folder / name, tmp_path / name)
        path = tmp_path / name / "config.json"
        config = json.loads(path.read_text())
        config["data"]["label_vocabulary"] = [values]
        path.write_text(json.dumps(config))
    path = tmp_path / cascade_file.CASCADE_FILE
    path.write_text(FILE.split('[[stage]]\nname = "ssr"')[0])
    with pytest.raises(UserError, match="trained with different labels"):
        cascade.read(tmp_path)


@pytest.mark.slow
def test_one_command_distils_every_stage(folder, tmp_path):
    """A second call does nothing; the file's sampling settings are kept."""
    two = folder / "two.toml"
    two.write_text(FILE.split('[[stage]]\nname = "ssr"')[0])
    flags = (
        f"--cascade={two}", "--config=configs/distill_cascade.py:smoke",
        f"--workdir={tmp_path}",
    )  # fmt: skip
    for _ in range(2):
        done = call("distill", *flags)
        assert done.returncode == 0, done.stderr
    assert "1 rounds of" in done.stdout and "compiled" not in done.stdout
    read = cascade.read(tmp_path)
    assert [stage.name for stage in read.stages] == ["base", "tsr"]
    assert [stage.settings.steps for stage in read.stages] == [2, 2]
    assert read.stages[1].settings.augmentation_snr == 3
    videos = cascade.sample(read, 1)["tsr"]
    # Exported, it makes the same videos but for half precision.
    done = call("export", f"--cascade={tmp_path}", f"--out={tmp_path}/shipped")
    assert done.returncode == 0, done.stderr
    shipped = cascade.read(tmp_path / "shipped")
    assert [stage.settings for stage in shipped.stages] == [
        stage.settings for stage in read.stages
    ]
    # Exporting shipped stages copies them.
    done = call("export", f"--cascade={tmp_path}/shipped", f"--out={tmp_path}/twice")
    assert done.returncode == 0, done.stderr
    for name in (
        "tsr/params.safetensors",
        "tsr/metrics.jsonl",
        cascade_file.CASCADE_FILE,
    ):
        copy = (tmp_path / "twice" / name).read_bytes()
        assert copy == (tmp_path / "shipped" / name).read_bytes()
    exported = cascade.sample(shipped, 1)["tsr"]
    assert exported.shape[1:] == read.stages[1].model.shape
    assert abs(exported - videos).mean() < 1e-2


@pytest.mark.parametrize(
    "flags",
    [[], ["--teacher=x", "--cascade=y"]],
)
def test_distillation_has_one_teacher_or_a_cascade(tmp_path, flags):
    done = call(
        "distill", "--config=configs/distill_cascade.py:smoke",
        f"--workdir={tmp_path}", *flags,
    )  # fmt: skip
    assert done.returncode == 2
    assert "give --teacher (a model) or --cascade" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--workdir=x", "--cascade=y"], "give --workdir (a model) or --cascade (a "),
        ([], "give --workdir (a model) or --cascade (a cascade of"),
        (["--cascade={}", "--last_stage=top"], "stage 'top'"),
        (["--cascade={}", "--prompt=a cat"], "trained without text"),
        (["--cascade={}", "--label=red"], "was trained without labels"),
        (
            ["--cascade={}", "--num_frames=8"],
            "goes with --workdir or --system, not with --cascade",
        ),
        (["--cascade={}", "--augmentation_snr=0.1"], "trained with 1 to inf"),
        (["--cascade={}", "--prompts=nowhere.txt"], "--prompts=nowhere.txt"),
        (["--cascade={}", "--text_encoder=x"], "--text_encoder: "),
        (["--workdir={}/ssr"], "is a super-resolution stage: name it"),
        (["--cascade=README.md/x"], "no cascade README.md/x"),
        (
            ["--cascade=cascades/shapes", f"--prompt={'word ' * 300}"],
            "minilm takes 256",
        ),
        (["--workdir=x", "--prompt=a"], "x is not a run"),
        (["--workdir={}/base", "--prompt=a"], "trained without text"),
        (
            ["--workdir={}/base", "--last_stage=base"],
            "--last_stage goes with --cascade",
        ),
    ],
)
def test_sample_py_refuses_in_one_line(folder, tmp_path, flags, message):
    flags = [flag.format(folder) for flag in flags]
    done = call("sample", *flags, f"--out={tmp_path / 'out'}")
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]


RED = "a red circle moves left quickly"


def test_the_shipped_cascade_follows_its_prompts(tmp_path):
    """A file and a flag of prompts, two videos of each, in their order."""
    (tmp_path / "prompts").write_text("a green square moves up slowly\n\n")
    done = call(
        "sample", "--cascade=cascades/shapes", f"--prompt={RED}",
        f"--prompts={tmp_path}/prompts", "--num=2", "--last_stage=tsr1",
        f"--out={tmp_path}/out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out" / "tsr1" / "samples.npz") as kept:
        attributes = SHAPES.measure(kept["videos"], 2)["attributes"]
    circle, square = (0, 0, 0, 1), (1, 1, 2, 0)
    assert (attributes == [circle, circle, square, square]).all()


def test_the_shipped_cascade_is_small_and_its_prompts_were_never_trained_on():
    folder = ROOT / "cascades" / "shapes"
    read = cascade.read(folder)
    assert [stage.model.shape[:3] for stage in read.stages] == [
        (4, 12, 16), (8, 12, 16), (8, 24, 32), (8, 48, 64), (16, 48, 64),
    ]  # fmt: skip
    assert [stage.settings.steps for stage in read.stages] == [8] * 5
    assert cascade.nfe(read) == 40 and read.text_encoder == "minilm"
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) < 10e6
    unseen = shapes_data.choose_held_out_combinations(
        read.stages[0].config.data.held_out_combinations
    )
    labels = np.stack(np.unravel_index(unseen, shapes_data.ATTRIBUTE_SIZES), 1)
    rng = np.random.default_rng(0)
    sentences = {
        shapes_data.caption(label, rng) for label in labels for _ in range(400)
    }
    assert set((folder / "prompts.txt").read_text().splitlines()) <= sentences
