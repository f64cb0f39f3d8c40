"""The scores and rows of the studies of videos of sprites."""

import contextlib
import inspect
import json
import types
from typing import Any

import numpy as np
import pytest

from experiments import sprite_videos
from experiments.control_video import control_video as control_study
from experiments.text2video_zero import text2video_zero as motion_study
from experiments.tune_a_video import tune_a_video as tune_study
from tests.sprite_cases import needs_pictures, sprites
from vdm_jax.errors import UserError
from vdm_jax.metrics.sprite_detection import detect_sprites
from vdm_jax.metrics.sprite_scores import wilson_interval
from vdm_jax.systems import control_video, text2video_zero
from vdm_jax.systems.text2video_zero import warp

DIRECTIONS = motion_study.DIRECTIONS


@needs_pictures
def test_the_places_of_held_out_clips_are_those_of_their_videos():
    source = sprites()
    clips = sprite_videos.held_out_clips(source, 3, seed=5)
    rendered = clips.rendered(clips.labels[:, :2], source)
    np.testing.assert_array_equal(rendered, clips.videos)
    found = detect_sprites(clips.videos, source)
    np.testing.assert_allclose(found.centre, clips.centres, atol=0.5)
    scores = sprite_videos.common_scores(
        clips.videos, found, source, clips.labels[:, :2], clips.centres[::-1]
    )
    assert all(scores[name].all() for name in ("object", "background", "identity"))
    distance = np.linalg.norm(clips.centres - clips.centres[::-1], axis=-1).mean(1)
    np.testing.assert_allclose(scores["trajectory_error"], distance, atol=0.5)


def test_another_value_is_never_the_same():
    values = np.arange(64) % 8
    found = sprite_videos.others(values, 8, seed=0)
    assert (found != values).all() and {*found.tolist()} == set(range(8))


def moving(source, size, starts, displacements):
    """Return clips of a frog on white, uint8 [n, 8, h, w, 3]."""
    time = np.linspace(0, 1, 8)[:, None]
    paths = [s + time * d for s, d in zip(starts, displacements, strict=True)]
    white = np.full((64, 64, 3), 245, np.float32)
    return np.stack([source.render(1, size, path, white) for path in paths])


@needs_pictures
def test_direction_and_displacement_are_those_of_the_motion_that_is_set():
    """To the right as set, left half as far, down a fifth farther, up sideways."""
    source, set_to = sprites(), 10.5
    moves = set_to * DIRECTIONS * [[1], [0.5], [1.2], [0]]
    moves[3] = 6, 0
    starts = np.array([(32, 32), (32, 32), (32, 43), (32, 32)]) - moves / 2
    videos = moving(source, 28, starts, moves)
    labels = np.array([[1, 0]] * 4)
    found = motion_study.score(videos, source, labels, np.arange(4))
    assert found["direction"].tolist() == [True, True, True, False]
    assert found["displacement"].tolist() == [True, False, True, False]
    np.testing.assert_allclose(found["along"], [10.5, 5.25, 12.6, 0], atol=0.5)
    assert found["object"].all()


@needs_pictures
def test_directions_have_room_and_are_balanced():
    source = sprites()
    starts = np.array([(32, 32), (32, 32), (48, 16), (32, 32), (32, 32), (50, 50)])
    videos = moving(source, 28, starts, 0 * starts)[:, :1]
    videos[4] = np.random.default_rng(0).integers(0, 256, videos[4].shape)
    first = detect_sprites(videos, source)
    chosen = motion_study.directions_with_room(first, source).tolist()
    assert chosen == [0, 1, 2, 3, -1, 1]


def test_wrong_variants_of_the_motion_are_wrong():
    z = np.zeros((1, 1, 64, 64, 1))
    z[0, 0, 32, 32] = 1
    places = [
        np.argwhere(move(z, (12.0, 0.0), [4])[0, 0, ..., 0]).tolist()
        for move in (warp, motion_study.swapped)
    ]
    assert places == [[[32, 38]], [[38, 32]]]
    assert motion_study.kept(z, z, 0.5) is z


def test_the_variants_stand_in_for_what_they_replace():
    """They take the arguments of the system's own functions."""
    for _, replaced in motion_study.ROWS.values():
        for name, variant in replaced.items():
            own = inspect.signature(getattr(text2video_zero, name)).parameters
            given = [each for each in own.values() if each.kind != each.VAR_KEYWORD]
            inspect.signature(variant).bind(*given)


def test_means_of_the_wrong_parity_replace_the_frame_before_theirs():
    for step in (0, 1):
        right = control_video.neighbours(9, step)
        wrong = control_study.misplaced(9, step)
        inner = [i for i in range(1, 8) if right[i, 0] < i < right[i, 1]]
        assert inner
        for i in inner:
            np.testing.assert_array_equal(wrong[i - 1], right[i])
            np.testing.assert_array_equal(wrong[i], i)


def test_other_reads_are_those_of_the_named_calls_alone(monkeypatch):
    made = []
    monkeypatch.setattr(
        control_study,
        "with_frames",
        lambda model, frames, **fields: made.append(fields),
    )
    with control_study.reading(every="own"):
        for reads in ("every", "ends"):
            control_video.with_frames(None, 8, frame_reads=reads)
        control_video.with_frames(None, 8, joint_norms=True)
    assert made == [
        {"frame_reads": "own"},
        {"frame_reads": "ends"},
        {"joint_norms": True},
    ]


def test_every_edit_has_its_own_prompt_and_the_tokens_of_no_text(monkeypatch):
    given = []

    def sample(model, params, num, settings, inputs, run):
        given.append({name: array.tolist() for name, array in inputs.cond.items()})
        return np.zeros(num)

    monkeypatch.setattr(tune_study.sampling, "sample", sample)
    edits: Any = types.SimpleNamespace(
        clips=types.SimpleNamespace(videos=np.zeros((3, 1))),
        cond={"text": np.arange(3), "null_text": np.array([9])},
        image=types.SimpleNamespace(settings=None),
        flags=types.SimpleNamespace(seed=0),
    )
    tune_study.Edits.sample(edits, lambda number: (None, None), inverts=False)
    assert given == [{"text": [i], "null_text": [9]} for i in range(3)]


def test_shares_have_wilsons_interval_and_means_standard_errors():
    values = np.array([1.0, 2.0, 3.0, 6.0])
    scores = {"share": values > 1, "mean": values, "none": values[:0] > 1}
    half = 1.96 * values.std(ddof=1) / 2
    assert sprite_videos.summary(scores) == {
        "share": 0.75, "share_count": 3, "share_interval": wilson_interval(0.75, 4),
        "mean": 3.0, "mean_interval": (3 - half, 3 + half),
    }  # fmt: skip


def test_rows_are_kept_and_those_of_another_setting_are_refused(tmp_path, capsys):
    made, active = [], []

    def sample():
        made.append(active[-1])
        return np.zeros((2, 3, 8, 8, 3), np.uint8)

    @contextlib.contextmanager
    def patch(name):
        active.append(name)
        yield

    def table(seed):
        return sprite_videos.Table(tmp_path, "study", {"right": "right"}, seed=seed)

    def score(videos):
        return {"right": np.array([True, False])}

    for name in ("a", "b", "a", "b"):
        table(0).add(name, sample, score, ["x", "y"], [patch(name)])
    assert made == ["a", "b"]
    assert "95%" in capsys.readouterr().out
    stored = json.loads((tmp_path / "study.json").read_text())
    assert [(row["row"], row["n"], row["right"]) for row in stored["rows"]] == [
        ("a", 2, 0.5), ("b", 2, 0.5),
    ]  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {
        "study.json",
        "a.png",
        "b.png",
    }
    with pytest.raises(UserError, match="seed.: 0.*, not .*give another --out"):
        table(1)
