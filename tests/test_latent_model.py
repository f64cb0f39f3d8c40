"""A model that diffuses the latents of a trained autoencoder, from end to end."""

import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from configs import cascade_small, shapes
from tests.metrics.cheap_networks import CheapNetworks
from tests.parity.recorded import write_autoencoder
from tests.run_command import SMOKE, call, refused
from tests.small_model import area_mean_errors, write_model
from vdm_jax import build, cascade, codec, data, runs, sampling
from vdm_jax.commands.export import export_model
from vdm_jax.data import __main__ as command
from vdm_jax.data import pipeline
from vdm_jax.errors import UserError
from vdm_jax.evaluators import clips, models
from vdm_jax.evaluators.reports import ReportOptions
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
    deviation = made.moments_on_host(video.astype(np.float32), params)[..., 4:]
    assert config.data.mean == pytest.approx(float(z.mean()), abs=1e-5)
    variance = z.var() + (deviation**2).mean()  # of draws
    assert config.data.variance == pytest.approx(float(variance), rel=1e-4)
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


# ml_collections loads config files by what Python will one day be without.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_it_trains_on_stored_latents_and_resumes_with_its_autoencoder(folder, tmp_path):
    flags = ["--config=configs/shapes.py:smoke", f"--autoencoder={folder}"]
    stored = tmp_path / "stored"
    assert command.main(["latents", *flags, f"--out={stored}", "--num_clips=8"]) == 0
    flags = [
        SMOKE, "--config.codec.kind=autoencoder", "--config.network.patch_size=1",
        f"--config.data.path={stored}", f"--workdir={tmp_path}/run",
    ]  # fmt: skip
    done = call("train", *flags, f"--config.codec.path={folder}")
    assert done.returncode == 0, done.stderr
    assert "latents of shapes: 8 clips for training, 64 held out" in done.stdout
    made = np.load(tmp_path / "run" / "samples" / "step-0000004.npz")["videos"]
    assert made.shape[1:] == (8, 16, 16, 3)
    assert runs.load(tmp_path / "run").model.codec.path == str(folder)
    other = write_autoencoder(tmp_path / "vae", part="tiles_", scaling_factor=0.25)
    message = refused("train", *flags, f"--config.codec.path={other}")
    assert "has latents of another autoencoder" in message


@pytest.mark.slow
def test_a_run_has_the_fingerprint_of_its_autoencoder(trained, folder, tmp_path):
    path = shutil.copytree(trained, tmp_path / "run")
    other = write_autoencoder(tmp_path / "vae", part="tiles_", scaling_factor=0.25)
    flags = [SMOKE, "--config.codec.kind=autoencoder", "--config.network.patch_size=1"]
    flags += ["--config.train.steps=6", f"--workdir={path}"]
    message = refused("train", *flags, f"--config.codec.path={other}")
    assert "the data changed: codec is" in message
    moved = shutil.copytree(folder, tmp_path / "moved")
    done = call("train", *flags, f"--config.codec.path={moved}")
    assert done.returncode == 0 and "resuming from step 4" in done.stdout


def test_a_shipped_model_is_moved_with_its_autoencoder(trained, folder, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    vae = shutil.copytree(folder, tmp_path / "models" / "vae")
    config = runs.read_config(run)
    config.codec.path = str(vae)
    (run / "config.json").write_text(config.to_json_best_effort())
    export_model(run, tmp_path / "models" / "clips")
    moved = (tmp_path / "models").rename(tmp_path / "moved")
    loaded = runs.load(moved / "clips")
    assert loaded.model.codec.path == str(moved / "vae") and loaded.params["codec"]


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


def test_it_extends_and_known_frames_come_back(loaded):
    video = np.random.default_rng(0).uniform(-1, 1, (1, 12, 16, 16, 3)).astype("f4")
    mask = np.zeros((1, 12, 16, 16, 1), bool)
    mask[:, :4] = True
    inputs = SamplingInputs(observation=Observation(video, mask))
    made = sampling.extend_in_blocks(loaded.model, loaded.params, 1, SETTINGS, inputs)
    np.testing.assert_array_equal(made[:, :4], video[:, :4])
    assert np.isfinite(made).all() and abs(made[:, 4:] - video[:, 4:]).mean() > 0.1


def test_its_decoded_videos_are_edited_and_measured(trained, loaded, tmp_path):
    """By the commands: a clip is inpainted; samples are compared with real clips."""
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (1, 8, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "samples.npz", videos=clip)
    Image.fromarray(np.repeat(np.eye(16, dtype="u1")[..., None], 3, 2) * 255).save(
        tmp_path / "mask.png"
    )
    done = call(
        "edit", f"--workdir={trained}", f"--inpaint={tmp_path}/samples.npz",
        f"--mask={tmp_path}/mask.png", f"--out={tmp_path}/out", "--num=1", "--steps=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out" / "samples.npz") as arrays:
        differs = (arrays["videos"] != clip).any((0, 1, 4))
    np.testing.assert_array_equal(differs, np.eye(16, dtype=bool))
    results = models.evaluate(
        clips.model_cascade(loaded.model, loaded.config, trained),
        ReportOptions(tmp_path / "report"), num=4, seed=0, networks=CheapNetworks(),
    )  # fmt: skip
    rows = {row["row"]: row for row in results["networks"]}
    assert rows["samples"]["fvd"] > rows["training real"]["fvd"]


def test_known_area_means_guide_the_decoded_video(loaded):
    errors = area_mean_errors(loaded, mean=0.2)
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


def stage_config(folder):
    """Return the config of a stage that doubles 8x8 pixels, as latents."""
    config = cascade_small.get_config("smoke").unlock()
    config.codec.update(kind="autoencoder", path=str(folder))
    config.network.patch_size = 1
    config.stage.update(kind="ssr", factor=2, augmentation_time=(0.0, 0.0))
    config.data.update(mean=0.0, variance=1.0, label_vocabulary=())
    return config


def test_a_stage_encodes_its_input_before_noise_is_added(folder):
    model = build.build_model(stage_config(folder))
    batch = {"video": np.full((2, *model.video_shape), 255, np.uint8)}
    params = model.codec.load_params()
    key = jax.random.key(0)
    z, cond = jax.jit(model.prepare_batch)(batch, key, codec_params=params)
    assert z.shape[1:] == model.shape and cond["low_res"].shape == z.shape
    mean = model.codec.encode_on_host(np.ones((2, *model.video_shape), "f4"), params)
    np.testing.assert_allclose(cond["low_res"], mean, atol=1e-2)
    assert abs(z - mean).max() > 0.1  # z is a draw


def test_a_cascade_hands_on_videos_between_latent_models(folder, tmp_path):
    config = stage_config(folder)
    config.stage.augmentation_time = (0.0, 1.0)
    config.network.update(
        levels=(dict(channels=8, blocks=1, layers=("temporal_conv",)),), mid_layers=()
    )
    config.conditioning.update(text_dim=0, label_dropout=0.0)
    write_model(tmp_path / "ssr", config)
    del config.stage
    config.video.update(height=8, width=8)
    write_model(tmp_path / "base", config)
    stages = [f'[[stage]]\nname="{n}"\nworkdir="{n}"\nsteps=2' for n in ("base", "ssr")]
    (tmp_path / "cascade.toml").write_text("\n".join(stages))
    read = cascade.read(tmp_path)
    base, ssr = read.stages
    assert base.model.shape == (8, 4, 4, 4) and ssr.model.shape == (8, 8, 8, 4)
    made = cascade.sample(read, 1)
    assert made["base"].shape == (1, 8, 8, 8, 3) and made["ssr"].shape[2:4] == (16, 16)
    other = cascade.sample(read, 1, base_videos=-made["base"])
    assert abs(other["ssr"] - made["ssr"]).mean() > 0.01


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
