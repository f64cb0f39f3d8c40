"""A cascade is trained by one command, told by text and by what its clips become."""

import numpy as np
import pytest

from tests.verbs import call
from vdm_jax.data import embeddings, shapes
from vdm_jax.errors import UserError
from vdm_jax.training import told

CONFIG = """
from configs import cascade_small

STAGES = ("base", "tsr1")


def get_config(variant):
    config = cascade_small.get_config("smoke").unlock()
    config.data.embeddings = {embeddings!r}
    config.conditioning.update(text_width=6, text_drop=0.1)
    config.sample.update(steps=2, guidance=1.0)
    config.video.frames = 4 if variant == "base" else 8
    config.data.stride = 2 if variant == "base" else 1
    config.stage.kind = "base" if variant == "base" else "tsr"
    mixing = ("temporal_conv", "cross_attention")
    config.network.levels = (dict(channels=8, blocks=1, mixing=mixing),)
    config.network.middle = ()
    return config.lock()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Embeddings of every sentence of moving shapes, by an encoder that is no more."""
    folder = tmp_path_factory.mktemp("embeddings")
    source = shapes.Shapes(shapes.Geometry(8, 16, 16))
    rng = np.random.default_rng(0)

    def encode(captions):
        return [
            rng.normal(size=(len(c.split()), 6)).astype(np.float16) for c in captions
        ]

    about = {"encoder": "/nowhere", "width": 6}
    embeddings.write(folder, source.captions, encode, about)
    return str(folder)


def test_text_is_padded_to_the_longest(folder):
    texts = told.Texts(folder)
    captions = np.array(["a red square moves left slowly", ""])
    batch = texts(captions)
    assert batch["text"].shape == (2, texts.longest, 6) and texts.longest >= 7
    assert batch["text_mask"].sum(1).tolist() == [6, 0]
    tokens = texts.embeddings[str(captions[0])]
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
    for verb, more in (
        ("sample", [f"--out={tmp_path}/out"]),
        ("evaluate", ["--num=2"]),
    ):
        done = call(verb, f"--workdir={workdir}/base", *more)
        assert done.returncode == 2
        assert "is told by text: name it in a cascade" in done.stderr.splitlines()[-1]
    # The encoder that made the text is gone: said in a line.
    done = call("sample", f"--cascade={workdir}", f"--out={tmp_path}/out")
    assert done.returncode == 2
    assert "no text encoder '/nowhere'" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "changes, message",
    [
        (["--config.conditioning.text_width=8"], "are 6 wide; set it to that"),
        (["--config.data.embeddings=/absent"], "/absent has no embeddings.json"),
    ],
)
def test_text_that_does_not_fit_is_refused(folder, tmp_path, changes, message):
    done = call(
        "train", "--config=configs/cascade_small.py:smoke", f"--workdir={tmp_path}/run",
        f"--config.data.embeddings={folder}", *changes,
    )  # fmt: skip
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "give --config, of a model, or --cascade"),
        (["--cascade=configs/shapes.py"], "is of one model: it names no STAGES"),
        (
            ["--cascade=configs/cascade_smal.py"],
            "did you mean configs/cascade_small.py",
        ),
    ],
)
def test_what_is_no_cascade_is_refused(tmp_path, flags, message):
    done = call("train", *flags, f"--workdir={tmp_path}/run")
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1]
