"""Controls of clips: what they are, and how training draws them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from tests import small_model
from tests.sprite_cases import needs_pictures, sprites
from vdm_jax import build
from vdm_jax.conditions import hint
from vdm_jax.errors import UserError
from vdm_jax.metrics import sprite_detection


def draw(*shape):
    """Return normal numbers."""
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))


def test_luma_is_that_of_bt_601():
    """White is 1, black -1; green is brighter than red, red than blue."""
    colours = 2 * np.array([[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]) - 1
    found = hint.luma(jnp.asarray(colours[None, None], jnp.float32))[0, 0, :, 0]
    np.testing.assert_allclose((found + 1) / 2, [1, 0, 0.299, 0.587, 0.114], atol=1e-6)


def test_edges_are_sobel_s():
    """Against scipy; a step from black to white is as steep as can be."""
    x = 0.3 * draw(2, 3, 7, 9, 1)
    found = hint.edges(x)[..., 0]
    for frame, made in zip(np.asarray(x)[0, ..., 0], found[0], strict=True):
        squares = [ndimage.sobel(frame, axis, mode="nearest") ** 2 for axis in (0, 1)]
        expected = np.minimum(np.sqrt(sum(squares)) / 4, 1)
        np.testing.assert_allclose((made + 1) / 2, expected, atol=1e-5)
    step = np.where(np.arange(6) < 3, -1.0, 1.0)
    step = np.broadcast_to(step[:, None, None], (6, 4, 3))[None].astype(np.float32)
    rows = hint.edges(jnp.asarray(step))[0, :, :, 0]
    np.testing.assert_allclose(rows[:, 0], [-1, -1, 1, 1, -1, -1], atol=1e-6)


def test_training_draws_one_kind_for_each_example():
    """The hint is in [0, 1]: 255 is 1, and the same in all channels."""
    shape = (2, 4, 5, 3)
    condition = hint.Hint(shape, "control_0", hint.KINDS)
    x = jnp.clip(draw(64, *shape), -1, 1)
    silhouette = np.zeros((64, *shape[:3], 1), np.uint8)
    silhouette[:, :, 1] = 255
    prepare = jax.jit(condition.prepare_batch)
    same, arrays = prepare(x, jax.random.key(0), silhouette=silhouette)
    np.testing.assert_array_equal(same, x)
    made = np.asarray(arrays["control_0"])
    assert made.shape == x.shape and (made == made[..., :1]).all()
    assert made.min() == 0 and made.max() == 1
    of_kind = {
        "silhouette": silhouette / 255,
        "luma": (hint.luma(x) + 1) / 2,
        "edges": (hint.edges(x) + 1) / 2,
    }
    equal = np.array(
        [
            [
                np.allclose(one, every, atol=1e-6)
                for one, every in zip(made, of, strict=True)
            ]
            for of in of_kind.values()
        ]
    )
    assert (equal.sum(0) == 1).all() and (equal.sum(1) > 10).all()
    other = prepare(x, jax.random.key(1), silhouette=silhouette)[1]["control_0"]
    assert (np.abs(other - made).max((1, 2, 3, 4)) > 0).sum() > 20


def test_sampling_is_given_a_video_of_controls():
    """Previews show the kinds in turn; training and sampling agree on each."""
    condition = hint.Hint((1, 4, 5, 3), "control_0", ("luma", "edges"))
    x = jnp.clip(draw(4, 1, 4, 5, 3), -1, 1)
    given = condition.observation(x)
    for i, control in enumerate((hint.luma, hint.edges) * 2):
        np.testing.assert_allclose(given[i, ..., :1], control(x[i]), atol=1e-6)
    found = condition.from_observation(given, jnp.zeros(4), x)["control_0"]
    np.testing.assert_allclose(found, (given + 1) / 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"control.kinds": ()}, "control.kinds=(): some of silhouette, luma, edges"),
        ({"control.hint_channels": ()}, "hint_channels=(): one width"),
        ({"control.hint_channels": (4, 4)}, "1 of them are for 1/1"),
        ({"network.patch_size": 2}, "2 of them are for 1/2"),
        ({"data.joint_image_frames": 2}, "joint_image_frames=2: a ControlNet"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(changes, message):
    config = small_model.sd_config()
    config.control = {"kinds": ("luma",), "hint_channels": (4,)}
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError) as refusal:
        build.build_model(config)
    assert message in str(refusal.value)


@needs_pictures
def test_a_silhouette_is_how_much_of_a_pixel_the_object_covers():
    """By what changes from a black to a white background."""
    source = sprites("small", frames=2, silhouettes=True)
    clip = source.load(5, np.random.default_rng(0), 2)
    assert clip["silhouette"].shape == (2, 64, 64, 1)
    background = clip["video"][0, 0, 0].astype(int)
    outside = clip["silhouette"][..., 0] == 0
    assert (clip["video"][outside] == background).all()
    size, centres = source.draw_place(source.labels[5], np.random.default_rng((0, 5)))
    number = int(source.labels[5][0])
    frames = [
        source.render(number, size, centres, np.full((64, 64, 3), value, np.float32))
        for value in (0, 255)
    ]
    visible = frames[1].astype(int) - frames[0]
    silhouette = source.silhouette(number, size, centres).astype(int)
    assert np.abs(255 - visible - silhouette).max() <= 1
    np.testing.assert_array_equal(silhouette, clip["silhouette"])
    assert 0.02 < silhouette.mean() / 255 < 0.3


@needs_pictures
def test_the_measure_finds_the_silhouette_of_a_clip():
    source = sprites("small", frames=1, silhouettes=True)
    clip = source.load(7, np.random.default_rng(0), 1)
    found = sprite_detection.silhouettes(clip["video"][None], source)[0]
    errors = np.abs(found.astype(int) - clip["silhouette"])
    assert errors.mean() < 2
    moved = np.abs(np.roll(found, 4, axis=2).astype(int) - clip["silhouette"])
    assert moved.mean() > 5
