"""A model that diffuses the latents of a trained autoencoder, from end to end."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from configs import cascade_small, shapes
from tests.parity.recorded import write_autoencoder
from tests.run_command import SMOKE, call
from vdm_jax import build, codec, data, runs, sampling
from vdm_jax.commands.export import export_model
from vdm_jax.data import pipeline
from vdm_jax.errors import UserError
from vdm_jax.sampling import Observation, SamplingInputs

SETTINGS = sampling.Settings(sampler="ddim", steps=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder of a small autoencoder, of factor 2."""
    changes = {"scaling_factor": 0.5, "shift_factor": 0.25}
    folder = tmp_path_factory.mktemp("latents") / "vae"
    return write_autoencoder(folder, part="tiles_", **changes)


def latent_config(folder):
    config = shapes.get_config("smoke").unlock()
    config.codec.update(kind="autoencoder", path=str(folder))
    config.network.patch_size = 1
    return config


@pytest.fixture(scope="module")
def trained(folder):
    """Return the workdir of a run that diffuses latents."""
    workdir = folder.parent / "run"
    done = call(
        "train", SMOKE, "--config.codec.kind=autoencoder",
        f"--config.codec.path={folder}", "--config.network.patch_size=1",
        "--config.train.steps=4", f"--workdir={workdir}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.fixture(scope="module")
def loaded(trained):
    return runs.load(trained)


def test_z_is_shifted_and_scaled_and_its_statistics_are_measured(folder):
    config = latent_config(folder)
    source = data.open_source(config)
    data.resolve(config, source)
    made = codec.from_config(config)
    assert made.z_shape((8, 16, 16, 3)) == (8, 8, 8, 4)
    params = made.load_params()
    clips = list(pipeline.fixed_clips(config, source.split(False), data.STATS_CLIPS))
    video = np.concatenate([clip["video"] for clip in clips]) / 127.5 - 1
    z = made.encode_on_host(video.astype(np.float32), params)
    assert config.data.mean == pytest.approx(float(z.mean()), abs=1e-5)
    assert config.data.variance == pytest.approx(float(z.var()), rel=1e-4)
    network = made.autoencoder.network
    latent = jax.jit(lambda p, x: network.apply({"params": p}, x, method="encode").mean)
    expected = (latent(params, video[:2].astype(np.float32)) - 0.25) * 0.5
    np.testing.assert_allclose(z[:2], expected, atol=1e-5)


def test_it_trains_samples_and_previews(trained, loaded):
    model, params = loaded.model, loaded.params
    assert (model.shape, model.video_shape) == ((8, 8, 8, 4), (8, 16, 16, 3))
    preview = np.load(next((trained / "samples").glob("*.npz")))["videos"]
    assert preview.shape[1:] == (8, 16, 16, 3)
    z = sampling.generate(model, params, 2, SETTINGS)
    made = sampling.sample(model, params, 2, SETTINGS)
    autoencoder, own = model.codec.autoencoder, params["codec"]
    expected = jax.jit(autoencoder.decode)(own, z)
    np.testing.assert_allclose(made, np.clip(expected, -1, 1), atol=1e-4)
    assert sampling.invert(model, params, made, SETTINGS).shape == z.shape


def test_parameters_of_the_autoencoder_do_not_train(trained, loaded, folder):
    own = codec.from_config(latent_config(folder)).load_params()
    jax.tree.map(np.testing.assert_array_equal, loaded.params["codec"], own)
    names = (trained / "checkpoints").rglob("*codec*")
    assert not list(names) and "codec" not in jax.eval_shape(
        loaded.model.init_params, jax.random.key(0)
    )


def test_an_exported_model_reads_the_same_autoencoder(trained, loaded, tmp_path):
    export_model(trained, tmp_path / "model")
    exported = runs.load(tmp_path / "model")
    assert exported.model.codec == loaded.model.codec
    own = load_file(tmp_path / "model" / "params.safetensors")
    assert not any(name.startswith("codec") for name in own)
    jax.tree.map(
        np.testing.assert_array_equal, exported.params["codec"], loaded.params["codec"]
    )


def test_known_pixels_come_back_and_decide_the_rest(loaded):
    rng = np.random.default_rng(0)
    video = rng.uniform(-1, 1, (1, 8, 16, 16, 3)).astype(np.float32)
    mask = np.zeros((1, 8, 16, 16, 1), bool)
    mask[:, :4] = True
    mask[:, 4, 0, :3] = True  # one latent and half of another
    known = Observation(video, mask)
    z_mask = loaded.model.codec.encode_mask(mask)
    assert z_mask[0, 4, ..., 0].sum() == 0 and z_mask[0, :4].all()
    mask[:, 4, 1, :3] = True
    assert loaded.model.codec.encode_mask(mask)[0, 4, ..., 0].sum() == 1
    inputs = SamplingInputs(observation=known)
    made = sampling.sample(loaded.model, loaded.params, 1, SETTINGS, inputs)
    where = np.broadcast_to(mask, video.shape)
    np.testing.assert_array_equal(made[where], video[where])


def test_known_area_means_guide_the_decoded_video(loaded):
    low = np.full((1, 8, 4, 4, 3), 0.2, np.float32)
    none = np.zeros((1, 8, 16, 16, 1), bool)
    known = Observation(np.zeros((1, 8, 16, 16, 3), np.float32), none, low)
    inputs = SamplingInputs(observation=known)
    made = [
        sampling.sample(
            loaded.model, loaded.params, 1,
            sampling.Settings(8, "ddim", reconstruction_weight=weight), inputs,
        )
        for weight in (1e-9, 1.0)
    ]  # fmt: skip
    errors = [
        abs(x.reshape(1, 8, 4, 4, 4, 4, 3).mean((3, 5)) - low).mean() for x in made
    ]
    print(errors)
    assert errors[1] < 0.97 * errors[0]  # of an untrained decoder


def test_a_wrong_folder_size_or_stage_is_refused_in_one_line(folder, tmp_path):
    config = latent_config("")
    with pytest.raises(UserError, match="needs config.codec.path, the folder"):
        build.build_model(config)
    config = latent_config(tmp_path)
    with pytest.raises(UserError, match="config.json cannot be read"):
        build.build_model(config)
    config = latent_config(folder)
    config.video.height = 17
    with pytest.raises(UserError, match="multiples of 2 .* as 16x16"):
        build.build_model(config)
    config.video.update(height=16, channels=1)
    with pytest.raises(UserError, match="videos of 3 channels, not 1"):
        build.build_model(config)
    config = cascade_small.get_config("smoke").unlock()
    config.codec.update(kind="autoencoder", path=str(folder))
    config.stage.update(kind="ssr", factor=2)
    with pytest.raises(UserError, match="a stage of a cascade takes no autoencoder"):
        build.build_model(config)


@pytest.mark.slow
def test_it_is_distilled(trained, tmp_path):
    done = call(
        "distill", "--config=configs/distill_shapes.py:smoke", f"--teacher={trained}",
        f"--workdir={tmp_path}/run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    student = runs.load(tmp_path / "run")
    assert student.model.codec == runs.load(trained).model.codec
    assert "codec" in student.params
