"""One command trains a cascade, on text and on the low-resolution clips of a stage."""

import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from configs import cascade_small
from tests.run_command import call
from vdm_jax import cascade, cascade_file, data
from vdm_jax import text as encoders
from vdm_jax.data import embeddings, shapes
from vdm_jax.errors import UserError
from vdm_jax.training import captions
from vdm_jax.training import cascade as training_cascade
from vdm_jax.training.cascade import train_cascade, write_cascade_file
from vdm_jax.training.stop import PreemptionSignal

CONFIG = """
from configs import cascade_small

STAGES = ("base", "tsr1")


def get_config(variant):
    config = cascade_small.get_config("smoke").unlock()
    config.data.text_embeddings_dir = {embeddings!r}
    config.conditioning.update(text_dim=6, text_dropout=0.1)
    config.sample.update(steps=2, guidance_scale=2.0)
    config.train.update(eval_every=0, sample_every=2 if variant == "base" else 0)
    config.video.frames = 4 if variant == "base" else 8
    config.data.stride = 2 if variant == "base" else 1
    config.stage.update(kind="tsr")
    if variant == "base":
        del config.stage
    layers = ("temporal_conv", "cross_attention")
    config.network.levels = (dict(channels=8, blocks=1, layers=layers),)
    config.network.mid_layers = ()
    return config.lock()
"""


def name_another_encoder(index) -> None:
    """Change the encoder that an index names."""
    about = json.loads(index.read_text().replace("those", "others"))
    about["digest"] = embeddings._digest(about)
    index.write_text(json.dumps(about))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return embeddings of every sentence of moving shapes, by a missing encoder."""
    folder = tmp_path_factory.mktemp("embeddings")
    source = shapes.Shapes(shapes.Geometry(8, 16, 16))
    rng = np.random.default_rng(0)

    def encode(captions):
        return [
            rng.normal(size=(len(c.split()), 6)).astype(np.float16) for c in captions
        ]

    about = {"encoder": "/nowhere", "weights": "those", "width": 6}
    embeddings.write(folder, source.captions, encode, about)
    return str(folder)


@pytest.mark.parametrize(
    "pairs, same",
    [
        ([("a", "1"), ("b", "1")], True),
        ([("a", "1"), ("a", "2")], False),
        ([("a", ""), ("a", "1")], True),
        ([("a", ""), ("b", "1")], False),
        ([("a", ""), ("a", "1"), ("a", "2")], False),
        ([("a", ""), ("a", "")], True),
        ([("a", ""), ("", "")], False),
    ],
)
def test_an_encoder_is_identified_by_its_weights_or_else_its_name(pairs, same):
    sections = [
        dict(text_encoder=name, text_encoder_sha256=sha256) for name, sha256 in pairs
    ]
    assert encoders.same_text_encoder(sections) == same


def test_text_replaces_labels():
    for width, labels in ((0, shapes.ATTRIBUTES), (6, ())):
        config = cascade_small.get_config("smoke").unlock()
        config.conditioning.text_dim = width
        config.data.update(label_vocabulary=None, mean=0.0, variance=1.0)
        data.resolve(config, data.open_source(config))
        assert config.data.label_vocabulary == labels


def test_text_is_padded_to_the_longest(folder):
    texts = captions.CaptionEmbeddings(folder)
    strings = np.array(["a red square moves left slowly", ""])
    batch = texts(strings)
    assert batch["text"].shape == (2, texts.max_tokens, 6) and texts.max_tokens >= 7
    assert batch["text_mask"].sum(1).tolist() == [6, 0]
    tokens = texts[str(strings[0])]
    np.testing.assert_array_equal(batch["text"][0, :6], tokens)
    assert not batch["text"][0, 6:].any()
    with pytest.raises(UserError, match="no embedding of 'a horse'"):
        texts(["a horse"])


def test_one_command_trains_all_stages_and_again_trains_none(folder, tmp_path):
    config, workdir = tmp_path / "config.py", tmp_path / "run"
    config.write_text(CONFIG.format(embeddings=folder))
    flags = f"--cascade={config}", f"--workdir={workdir}"
    done = call("train", *flags)
    assert done.returncode == 0, done.stderr
    assert (workdir / "base" / "samples").is_dir()
    assert "base: training" in done.stdout and "tsr1: training" in done.stdout
    done = call("train", *flags)
    assert done.returncode == 0 and "step" not in done.stdout
    assert "base: trained" in done.stdout and "tsr1: trained" in done.stdout
    # Nor where a run was started before the encoder's weights were recorded.
    path = workdir / "base" / "config.json"
    fields = json.loads(path.read_text())
    assert fields["conditioning"].pop("text_encoder_sha256") == "those"
    path.write_text(json.dumps(fields))
    assert call("train", *flags).returncode == 0
    for command, stage, flags_of_it, message in (
        ("sample", "tsr1", [], "tsr1, is a super-resolution stage: name it"),
        # The encoder of the text is missing: one line says so.
        ("sample", "base", ["--prompt=a"], "no text encoder '/nowhere'"),
        ("sample", "base", ["--prompt=a", "--text_encoder=/else"], "encoder '/else'"),
    ):
        done = call(
            command, f"--workdir={workdir}/{stage}", f"--out={tmp_path}/o", *flags_of_it
        )
        assert done.returncode == 2
        assert message in done.stderr.splitlines()[-1]
    done = call("sample", f"--cascade={workdir}", f"--out={tmp_path}/out", "--prompt=a")
    assert done.returncode == 2
    assert "no text encoder '/nowhere'" in done.stderr.splitlines()[-1]

    # A trained stage is not used for another config.
    text = config.read_text()
    config.write_text(text.replace("channels=8", "channels=16"))
    done = call("train", *flags)
    assert done.returncode == 2
    assert "base was started with [{'channels': 8" in done.stderr.splitlines()[-1]
    # This is found before base resumes, which has a step more to train.
    config.write_text(
        text.replace("channels=8", 'channels=8 if variant == "base" else 16').replace(
            "return", 'config.train.steps += variant == "base"\n    return'
        )
    )
    done = call("train", *flags)
    assert done.returncode == 2 and "base: training" not in done.stdout
    assert "tsr1 was started with [{'channels': 8" in done.stderr.splitlines()[-1]
    # Nor is it used with the text of another encoder.
    other = tmp_path / "embeddings"
    shutil.copytree(folder, other)
    name_another_encoder(other / embeddings.INDEX)
    config.write_text(CONFIG.format(embeddings=str(other)))
    done = call("train", *flags)
    assert done.returncode == 2
    assert "with text of different encoders or" in done.stderr.splitlines()[-1]
    # Nor does the first start if the second does not take its videos.
    config.write_text(text.replace('variant == "base" else 8', "variant == '' else 8"))
    done = call("train", f"--cascade={config}", f"--workdir={tmp_path}/other")
    assert done.returncode == 2 and not (tmp_path / "other").exists()
    assert "stage tsr1 takes videos of (4, 16, 16, 3)" in done.stderr.splitlines()[-1]


def test_captions_that_a_source_lists_are_embedded_if_none_are(monkeypatch, tmp_path):
    config = cascade_small.get_config("base").unlock()
    config.data.text_embeddings_dir = str(tmp_path / "text")
    encoder = FakeEncoder()
    loaded = []
    monkeypatch.setattr(
        captions.text, "load_encoder", lambda *_, **__: loaded.append(0) or encoder
    )
    for _ in range(2):
        texts = captions.open_caption_embeddings(
            config, SimpleNamespace(captions=["a", "b b"])
        )
        assert loaded == [0] and encoder.calls == [["", "a", "b b"]]  # once
    assert texts["b b"].shape == (2, 384)
    assert config.conditioning.text_encoder_sha256 == "weights"


class FakeEncoder:
    name, dim, clip_skip = "fake", 384, 0

    def __init__(self):
        self.calls = []

    def sha256(self):
        return "weights"

    def __call__(self, texts):
        self.calls.append(sorted(texts))
        words = [len(t.split()) or 1 for t in texts]
        mask = np.arange(max(words)) < np.array(words)[:, None]
        tokens = np.ones((*mask.shape, 384), np.float32)
        return encoders.TextEmbedding(tokens, mask, tokens.mean(1))


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """Return a base and a stage with text; the base also trains on images."""
    workdir = tmp_path_factory.mktemp("trained")
    text = CONFIG.format(embeddings=folder).replace(
        "return", 'config.data.joint_image_frames = int(variant == "base")\n    return'
    )
    (workdir / "config.py").write_text(text)
    done = call("train", f"--cascade={workdir}/config.py", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.mark.slow
def test_stages_with_text_are_distilled_with_guidance(trained, folder, tmp_path):
    (trained / "file.toml").write_text(
        '[[stage]]\nname = "base"\nworkdir = "base"\nguidance_scale = 4.0\n'
        '[[stage]]\nname = "tsr1"\nworkdir = "tsr1"\n'
        "augmentation_snr = 3.0\ntiled_sampling = false\n"
    )
    flags = (
        f"--cascade={trained}/file.toml", "--config=configs/distill_cascade.py:smoke",
        f"--workdir={tmp_path}", "--config.distill.guidance_range=(1.0, 3.0)",
        "--config.distill.guidance_updates=2",
    )  # fmt: skip
    done = call("distill", *flags)
    assert done.returncode == 0, done.stderr
    base, tsr1 = cascade.read(tmp_path).stages
    assert base.settings.guidance_scale == 3.0
    assert base.model.guidance_range == (1.0, 3.0)
    assert tsr1.settings.augmentation_snr == 3.0 and tsr1.settings.guidance_scale == 2.0
    assert cascade.nfe(cascade.read(tmp_path)) == 4  # one branch of two steps each
    # Not with captions of another encoder.
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    name_another_encoder(other / embeddings.INDEX)
    changes = (
        f"--config.data.text_embeddings_dir={other}",
        f"--workdir={tmp_path}/again",
    )
    done = call("distill", *flags, *changes)
    assert done.returncode == 2
    assert "is conditioned on text of /nowhere, and the" in done.stderr
    (alone,) = cascade.read(tmp_path / "base").stages  # a student by itself
    assert alone.model == base.model and alone.settings.steps == 2


def test_the_file_of_a_cascade_is_kept_if_it_names_all_stages(tmp_path):
    path = tmp_path / cascade_file.CASCADE_FILE
    stages = {"base": {}, "tsr": {"augmentation_snr": 3.0}}
    write_cascade_file(stages, tmp_path)
    changed = "# mine\n" + path.read_text().replace("3.0", "4.0")
    path.write_text(changed)
    write_cascade_file(stages, tmp_path)
    assert path.read_text() == changed
    with pytest.raises(UserError, match="it lacks ssr: correct or delete it"):
        write_cascade_file(stages | {"ssr": {}}, tmp_path)
    assert path.read_text() == changed


@pytest.mark.parametrize("text", ["[[stage", "", "stage = 3", "[[stage]]\na = 1"])
def test_a_damaged_file_is_named_and_left_unchanged(tmp_path, text):
    (tmp_path / cascade_file.CASCADE_FILE).write_text(text)
    with pytest.raises(UserError, match="correct or delete it"):
        write_cascade_file({"base": {}}, tmp_path)
    assert (tmp_path / cascade_file.CASCADE_FILE).read_text() == text


def test_no_stage_starts_after_the_time_limit(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(training_cascade, "_check", lambda *args: None)
    monkeypatch.setattr(
        training_cascade, "train", lambda config, workdir, stop: started.append(workdir)
    )
    stages = "base", "tsr1"
    with pytest.raises(SystemExit) as stopped:
        train_cascade(
            stages, cascade_small.get_config, tmp_path, PreemptionSignal(1e-9)
        )
    assert stopped.value.code == 42 and started == [tmp_path / "base"]
    train_cascade(stages, cascade_small.get_config, tmp_path, PreemptionSignal(60.0))
    assert started[1:] == [tmp_path / stage for stage in stages]


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            ["--config.conditioning.text_dim=6", "--config.data.text_embeddings_dir="],
            "and no config.data.text_embeddings_dir: set it",
        ),
        (["--config.conditioning.text_dim=8"], "have dimension 6; set it to that"),
    ],
)
def test_text_that_does_not_fit_is_refused(folder, tmp_path, changes, message):
    done = call(
        "train", "--config=configs/cascade_small.py:smoke", f"--workdir={tmp_path}/run",
        f"--config.data.text_embeddings_dir={folder}", *changes,
    )  # fmt: skip
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1]
    assert "embedding" not in done.stdout


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "give --config (a model) or --cascade (its stages)"),
        (["--cascade=configs/shapes.py"], "is of one model: it names no STAGES"),
        (
            ["--cascade=configs/cascade_smal.py"],
            "did you mean configs/cascade_small.py",
        ),
    ],
)
def test_a_config_without_stages_is_refused(tmp_path, flags, message):
    done = call("train", *flags, f"--workdir={tmp_path}/run")
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1]


def test_a_cascade_is_not_trained_within_a_run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="another --workdir"):
        train_cascade(
            ("base",), lambda name: cascade_small.get_config("smoke"), tmp_path
        )
    assert os.listdir(tmp_path) == ["checkpoints"]
