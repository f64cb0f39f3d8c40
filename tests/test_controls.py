"""ControlNets on a trained model: reading, applying, sampling, writing."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from configs import sprites as sprites_config
from tests import small_model
from tests.sprite_cases import needs_pictures, sprites
from vdm_jax import build, controls, runs, sampling
from vdm_jax.commands import systems
from vdm_jax.errors import UserError
from vdm_jax.sampling import Control, SamplingInputs
from vdm_jax.sampling.controls import control_scales
from vdm_jax.trees import named_leaves

RANGES = [
    ((1.0, 0.0, 1.0), [1] * 10),
    ((0.5, 0.2, 0.5), [0, 0, 0.5, 0.5, 0.5, 0, 0, 0, 0, 0]),
    ((2.0, 0.25, 0.55), [0, 0, 0, 2, 2, 0, 0, 0, 0, 0]),  # whole steps only
]


@pytest.mark.parametrize(("control", "expected"), RANGES)
def test_scales_by_step(control, expected):
    found = control_scales([Control(*control), Control()], 10, 12)
    np.testing.assert_array_equal(found[:, 0], [*expected, 0, 0])
    np.testing.assert_array_equal(found[:10, 1], 1)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return an image model, and the folder of a ControlNet of it that was trained."""
    config = small_model.controlled_config()
    model = build.build_model(config)
    params = small_model.random_params(model, 0)
    image = runs.TrainedModel(model, params, config, 0, "0")
    folder = tmp_path_factory.mktemp("control")
    trained = small_model.write_controlnet(folder, image)
    return image, trained, folder


def settings(**changes):
    return sampling.Settings(4, "ddim", clip_x=0.0, batch_size=2, **changes)


def inputs(num, names, **changes):
    """Return texts and videos of controls by name."""
    rng = np.random.default_rng(0)
    text = rng.normal(size=(num, 3, 24)).astype(np.float32)
    mask = np.ones((num, 3), bool)
    hints = {name: rng.uniform(-1, 1, (num, 1, 8, 8, 3)) for name in names}
    cond = {"text": text, "text_mask": mask, "null_text": 0 * text}
    cond |= {"null_text_mask": mask, **hints}
    return SamplingInputs(cond, **changes)


def test_a_written_folder_is_applied_to_the_image_model(written):
    """It computes what the model that was trained does, up to half precision."""
    image, trained, folder = written
    loaded = controls.read(folder, image.model, image.config)
    assert loaded.kinds == ("luma", "edges")
    applied = controls.apply(image, [loaded])
    for name, leaf in named_leaves(applied.params).items():
        expected = named_leaves(trained.params)[name]
        np.testing.assert_allclose(leaf, expected, atol=1e-3)
        if "control_0" not in name:
            np.testing.assert_array_equal(leaf, expected)
    assert applied.checksum != image.checksum
    assert applied.model.network == trained.model.network
    with pytest.raises(UserError, match="has a ControlNet already"):
        controls.apply(applied, [loaded])


@needs_pictures
def test_silhouettes_of_a_clip_are_those_of_its_objects():
    """To a pixel's edge; in three channels, and for smoothing where an object is."""
    source = sprites("small", frames=2, silhouettes=True)
    clip = source.load(5, np.random.default_rng(0), 2)
    found = controls.control_video(clip["video"], "silhouette", "small")
    assert found.shape == clip["video"].shape and (found == found[..., :1]).all()
    covered = clip["silhouette"].astype(np.float32) / 255
    assert np.abs((found[..., :1] + 1) / 2 - covered).mean() < 0.01
    config = sprites_config.get_config().unlock()
    config.data.path = "small"
    config.video.frames = 2
    [where] = systems._find_sprites(config, clip["video"][None])
    assert where.dtype == bool and (where != (covered > 0.5)).mean() < 0.01


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 64, 64, 1), "not in 1 channels of 64x64: give a video of silhouettes"),
        ((1, 64, 129, 3), "up to 128x128, not in 3 channels of 129x64"),
    ],
)
def test_silhouettes_are_refused_of_what_is_no_sprite(shape, message):
    with pytest.raises(UserError, match=message):
        controls.control_video(np.zeros(shape, np.uint8), "silhouette", "small")


def test_start_and_end_are_fractions_of_the_steps(written):
    """The first half of the steps with the control, then the image model alone."""
    image, _, folder = written
    loaded = controls.read(folder, image.model, image.config)
    other = loaded._replace(params=jax.tree.map(lambda a: -a, loaded.params))
    applied = controls.apply(image, [loaded, other])
    for i, each in enumerate((loaded, other)):
        own = applied.params["network"][f"control_{i}"]
        jax.tree.map(np.testing.assert_array_equal, own, each.params)
    names = "control_0", "control_1"

    def z(model, given, **run):
        trained = applied if model is applied else image
        return sampling.generate(
            trained.model, trained.params, 2, settings(), given, sampling.Run(**run)
        )

    half = inputs(2, names, controls=(Control(0.5, 0, 0.5), Control(0.8, 0.5, 1)))
    whole = inputs(2, names, controls=(Control(0.5), Control(0.0)))
    found = z(applied, half)
    first = z(applied, whole, rows=(0, 2))
    second = dataclasses.replace(
        inputs(2, names, controls=(Control(0.0), Control(0.8))), initial_noise=first
    )
    expected = z(applied, second, rows=(2, 4))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - z(applied, whole)).max() > 1e-3
    none = z(applied, inputs(2, names, controls=(Control(0.0), Control(0.0))))
    np.testing.assert_allclose(none, z(image, inputs(2, ())), atol=1e-5)
    assert np.abs(found - none).max() > 1e-3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((Control(),) * 2, "2 controls: the model has 1 ControlNets"),
        ((Control(-1.0),), "scale -1.0 of a control: from 0"),
        ((Control(float("nan")),), "scale nan of a control: from 0"),
        ((Control(1.0, 0.5, 0.5),), "a control from 0.5 to 0.5: fractions"),
    ],
)
def test_controls_out_of_range_are_refused(written, given, message):
    _, trained, _ = written
    arguments = inputs(2, ["control_0"], controls=given)
    with pytest.raises(UserError, match=message):
        sampling.generate(trained.model, trained.params, 2, settings(), arguments)


def test_a_video_of_another_length_or_size_is_refused(written):
    _, trained, _ = written
    for shape, wanted in (((2, 3, 8, 8, 3), "3, 8, 8"), ((2, 1, 8, 4, 3), "1, 8, 4")):
        given = inputs(2, ())
        cond = {**given.cond, "control_0": np.zeros(shape)}
        with pytest.raises(UserError, match=rf"\(1, 8, 8, 3\): not \({wanted}"):
            sampling.generate(
                trained.model, trained.params, 2, settings(), SamplingInputs(cond)
            )
    with pytest.raises(UserError, match="conditioned on control_0"):
        sampling.generate(trained.model, trained.params, 2, settings(), inputs(2, ()))


OTHERS = {
    "wants text width 8, this U-Net has 24": {"cross_attention_dim": 8},
    "wants channels of z 4, this U-Net has 3": {"in_channels": 4},
    "wants levels": {"layers_per_block": 2},
    "config.json: ControlNetModel with in_channels=None": {"in_channels": None},
    "hints of 8x8 become 1/2": {"conditioning_embedding_out_channels": [6, 6]},
}


@pytest.mark.parametrize("message", OTHERS)
def test_a_controlnet_of_another_base_is_refused(written, tmp_path, message):
    image, _, folder = written
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | OTHERS[message]))
    with pytest.raises(UserError) as refusal:
        controls.read(tmp_path, image.model, image.config)
    assert message in str(refusal.value)


def test_a_model_without_timesteps_is_refused(written, tmp_path):
    image, _, folder = written
    config = small_model.sd_config()
    model = build.build_model(config)
    with pytest.raises(UserError, match="with timesteps, as"):
        controls.read(folder, model, config)
    with pytest.raises(UserError, match="has no ControlNet: train one"):
        controls.write(tmp_path / "out", image)
    assert not (tmp_path / "out").exists()


def test_another_kind_of_control_is_refused(written, capsys):
    image, _, folder = written
    loaded = controls.read(folder, image.model, image.config)
    controls.check_kind("edges", loaded)
    controls.check_kind("video", loaded)
    assert not capsys.readouterr().err
    with pytest.raises(UserError, match="trained on luma, edges, not on silhouette"):
        controls.check_kind("silhouette", loaded)
    with pytest.raises(UserError, match="control 'depth': one of silhouette"):
        controls.check_kind("depth", loaded)
    controls.check_kind("silhouette", loaded._replace(kinds=()))
    assert "does not say which controls" in capsys.readouterr().err


def test_controls_of_any_video():
    """255 is 1 in all channels, and a video of controls is taken as it is."""
    video = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    same = controls.control_video(video, "video")
    np.testing.assert_allclose(same, video / 127.5 - 1, atol=1e-6)
    for kind in ("luma", "edges"):
        made = controls.control_video(video, kind)
        assert made.shape == video.shape and (made == made[..., :1]).all()
    white = np.full((1, 8, 8, 3), 255, np.uint8)
    np.testing.assert_allclose(controls.control_video(white, "luma"), 1, atol=1e-6)
