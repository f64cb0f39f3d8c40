"""The rows of the study of the diffusion transformer, and its wrong variants."""

import inspect
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import dit as dit_config
from experiments.dit import dit as study
from experiments.dit import packed as packed_study
from experiments.sprite_videos import held_out_clips
from tests.sprite_cases import needs_pictures
from vdm_jax import build, files, runs
from vdm_jax.data.sprites import Geometry, Sprites
from vdm_jax.diffusion import guidance, schedules
from vdm_jax.networks import dit, dit_blocks
from vdm_jax.networks.positions import rope_angles


def task(source: Sprites, num: int) -> study.Task:
    """Return a task without a model."""
    clips, none = held_out_clips(source, num, seed=0), types.SimpleNamespace()
    captions = study.sentences(clips.labels, source, 0)
    model: Any = none
    return study.Task(model, model, source, clips, captions, {}, 0)


@needs_pictures
def test_clips_have_every_score_and_their_captions_are_of_training():
    source = Sprites("small", Geometry(8, 48, 80))
    real = task(source, 4)
    scores = real.score(real.clips.videos, study.ANIMATED)
    assert all(
        scores[name].all() for name in scores if name not in ("flicker", "cut_off")
    )
    assert not scores["cut_off"].any() and scores["flicker"].max() < 0.05
    assert {*real.captions} <= {*source.captions}
    others = np.roll(real.clips.videos, 1, axis=0)
    scores = real.score(others, study.ANIMATED)
    assert scores["identity"].all()
    assert not scores["given_object"].any() and not scores["given_frame"].any()
    assert len(scores["all_unseen"]) < len(scores["all"])


@needs_pictures
def test_the_same_labels_are_sampled_at_every_size():
    sizes = ((64, 64), (48, 80), (80, 48))
    tasks = [task(Sprites("small", Geometry(8, *size)), 5) for size in sizes]
    assert len({tuple(each.captions) for each in tasks}) == 1
    assert [each.size for each in tasks] == ["64x64", "48x80", "80x48"]
    crops = study.square(tasks[1].clips.videos)
    np.testing.assert_array_equal(crops, tasks[1].clips.videos[:, :, :, 16:64])
    assert {*tasks[1].score(crops, study.SAMPLED)} == {*study.SAMPLED}


def test_swapped_positions_are_those_of_the_transposed_grid():
    splits = (4, 2, 2)
    right, wrong = (
        rope_angles((2, 3, 5), splits),
        study.swapped_angles((2, 3, 5), splits),
    )
    transposed = rope_angles((2, 5, 3), splits).swapaxes(1, 2)
    np.testing.assert_array_equal(wrong, transposed)
    assert not np.allclose(wrong, right)


def test_frames_are_given_clean_at_the_level_of_the_step():
    known = jnp.full((1, 3, 1, 1, 1), 5.0)
    strength = jnp.array([[0.0, 1.0, 1.0]])
    level = schedules.noise_level_from_angle(jnp.float32(1.0))
    read = []

    def denoise(z, level, cond):
        read.append((np.ravel(z).tolist(), np.ravel(level.logsnr)))
        return guidance.Prediction(z, z)

    z = jnp.zeros(known.shape)
    for variant in (guidance.clean, study.at_step_level):
        prediction = variant(denoise, known, strength)(z, level, {})
        assert prediction.x[0, 0] == 5
    (frames, right), (same, wrong) = read
    assert frames == same == [5, 0, 0]
    assert np.isinf(right[0]) and right[1] == right[2] == level.logsnr
    assert (wrong == level.logsnr).all()


def test_the_variants_stand_in_for_what_they_replace():
    """They take the arguments of the library's own functions."""
    for own, variant in (
        (dit.rope_angles, study.swapped_angles),
        (guidance.clean, study.at_step_level),
        (dit_blocks.attention_ids, packed_study.one_id),
    ):
        assert [*inspect.signature(own).parameters] != []
        inspect.signature(variant).bind(*inspect.signature(own).parameters)


def test_sizes_are_those_of_the_clips(tmp_path):
    assert study.sizes_of(dit_config.get_config("packed")) == [
        (64, 64), (48, 80), (80, 48),
    ]  # fmt: skip
    assert study.sizes_of(dit_config.get_config("smoke")) == [(32, 32)]
    assert study.students_of(tmp_path) == [tmp_path]
    row = dict(
        steps=8, updates=1, loss=0.1, metric=1.0, seconds=1.0, path="rounds/0008"
    )
    files.write_json(tmp_path / runs.DISTILLATION_FILE, {})
    files.write_json(tmp_path / runs.ROUNDS_FILE, [row])
    assert study.students_of(tmp_path) == [tmp_path / "rounds/0008"]


@pytest.fixture(scope="module")
def transformer():
    """Return a task with a small transformer, and clips of two sizes for it."""
    config: Any = dit_config.get_config("smoke").unlock()
    config.conditioning.clean_frames = (("first", 0.5),)
    model = build.build_model(config)
    params = jax.tree.map(
        lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape),
        model.init(jax.random.key(0)),
    )
    trained = types.SimpleNamespace(model=model, params=params, config=config)
    rng, clips = np.random.default_rng(0), []
    for i, size in enumerate(((4, 16, 16), (2, 8, 24), (1, 16, 8))):
        z, v = rng.standard_normal((2, *size, 3), np.float32)
        text = rng.standard_normal((3, 384), np.float32)
        mask = np.arange(3) <= i
        clips.append(packed_study.Noisy(z, v, packed_study.LOGSNR[i], text, mask))
    return types.SimpleNamespace(trained=trained), clips


def test_clips_of_a_buffer_are_apart_and_leak_where_their_numbers_are_equal(
    transformer,
):
    own, clips = transformer
    alone = packed_study.alone(own, clips)
    together = packed_study.packed(own, clips, 32)
    scores = packed_study.score(together, clips, alone)
    assert scores["difference"].max() < 1e-5
    loss = [np.square(v - c.v).mean() for v, c in zip(alone, clips, strict=True)]
    np.testing.assert_allclose(scores["loss"], loss, rtol=1e-4)
    jax.clear_caches()
    with packed_study.LEAKING:
        leaking = packed_study.packed(own, clips, 32)
    assert packed_study.score(leaking, clips, alone)["difference"].min() > 1e-4
