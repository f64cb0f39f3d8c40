"""Stored latents: vdm_jax/data/stored_latents.py, encode.py and check_latents.py."""

import json
import pickle
import shutil

import jax
import numpy as np
import pytest

from configs import cascade_small, shapes
from tests.parity.recorded import write_autoencoder
from vdm_jax import build, codec, data, sharding
from vdm_jax.data import __main__ as command
from vdm_jax.data import encode, pipeline, stored_latents
from vdm_jax.errors import UserError
from vdm_jax.files import write_json
from vdm_jax.training.step import make_loss
from vdm_jax.training.trainer import Trainer

# ml_collections loads config files by what Python will one day be without.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
CLIPS = 12
CONFIG = "--config=configs/shapes.py:smoke"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return a folder with two autoencoders of factor 2, vae and other."""
    root = tmp_path_factory.mktemp("stored")
    changes = {"scaling_factor": 0.5, "shift_factor": 0.25}
    write_autoencoder(root / "vae", part="tiles_", **changes)
    write_autoencoder(root / "other", part="tiles_", **changes | {"shift_factor": 0.0})
    return root


def write(root, out, *flags, autoencoder="vae"):
    """Run the command; return its status."""
    return command.main(
        ["latents", CONFIG, f"--autoencoder={root / autoencoder}", f"--out={out}",
         f"--num_clips={CLIPS}", *flags]
    )  # fmt: skip


@pytest.fixture(scope="module", params=stored_latents.DTYPES)
def stored(root, request):
    """Return a folder of latents."""
    out = root / request.param
    assert write(root, out, f"--dtype={request.param}") == 0
    return out


@pytest.fixture(scope="module")
def half(root):
    out = root / "half"
    assert write(root, out) == 0
    return out


@pytest.fixture
def copy(half, tmp_path):
    """Return a copy of a folder of latents, to damage."""
    return shutil.copytree(half, tmp_path / "copy")


def config_of(root, path="", autoencoder="vae", **data):
    config = shapes.get_config("smoke").unlock()
    config.codec.update(kind="autoencoder", path=str(root / autoencoder))
    config.network.patch_size = 1
    config.data.update(path=str(path), mean=0.0, variance=1.0, **data)
    return config


def same_clips(config, held_out=False):
    """Return the videos whose latents are stored, as a batch."""
    part = data.open_videos(config).split(held_out)
    return next(pipeline.clip_batches(config, part, CLIPS))


def test_a_record_is_the_posterior_of_its_clip_with_label_and_caption(root, stored):
    config = config_of(root, stored)
    source = data.open_source(config)
    assert len(source) == CLIPS and len(source.split(True)) == encode.MIN_HELD_OUT
    tolerance = {"float32": 1e-5, "float16": 2e-3}[str(source.dtype)]
    made = codec.from_config(config)
    network, params = made.autoencoder.network, made.load_params()

    @jax.jit
    def posterior(video):
        return network.apply({"params": params}, video, method="encode")

    for part in (source, source.split(True)):
        batch = same_clips(config, part is not source)
        for i in range(3):
            clip = part.load(i, np.random.default_rng(0), 8)
            assert clip["caption"] == batch["caption"][i]
            np.testing.assert_array_equal(clip["label"], batch["label"][i])
            video = batch["video"][i : i + 1].astype(np.float32) / 127.5 - 1
            mean, log_variance = posterior(video)
            mean = (mean - 0.25) * 0.5
            deviation = np.exp(log_variance / 2) * 0.5
            expected = np.concatenate([mean, deviation], -1)[0]
            assert clip["latents"].dtype == source.dtype
            np.testing.assert_allclose(clip["latents"], expected, atol=tolerance)


@pytest.fixture(scope="module")
def model_and_loss(root):
    """Return a model, parameters and its compiled loss (aux_params, batch, key)."""
    config = config_of(root)
    config.data.label_vocabulary = data.open_source(config).label_vocabulary
    model = build.build_model(config)
    params = model.init(jax.random.key(0))
    loss_fn = jax.jit(make_loss(model, config.diffusion.loss_weighting))
    return model, lambda *rest: float(loss_fn(params, *rest)[0])


def test_the_loss_is_that_of_encoded_videos(root, stored, model_and_loss):
    """With the same noise: 1e-6 where latents are float32, 1e-3 where float16."""
    model, loss = model_and_loss
    config = config_of(root, stored)
    source = data.open_source(config)
    clips = [source.load(i, np.random.default_rng(0), 8) for i in range(4)]
    batch = {name: np.stack([clip[name] for clip in clips]) for name in clips[0]}
    batch = {"latents": batch["latents"].astype(np.float32), "label": batch["label"]}
    videos = {name: array[:4] for name, array in same_clips(config).items()}
    videos = {"video": videos["video"], "label": videos["label"]}
    aux_params = {"codec": model.codec.load_params()}
    tolerance = {"float32": 1e-6, "float16": 1e-3}[str(source.dtype)]
    for seed in range(3):
        key = jax.random.key(seed)
        online, read = loss(aux_params, videos, key), loss({}, batch, key)
        assert read == pytest.approx(online, rel=tolerance)
    assert abs(loss({}, batch, jax.random.key(9)) - online) > 1e-2


def test_mean_and_variance_are_those_of_draws(root, half):
    config = config_of(root, half)
    config.data.update(mean=None, variance=None)
    source = data.open_source(config)
    data.resolve(config, source)
    clips = [source.load(i, np.random.default_rng(0), 8) for i in range(CLIPS)]
    mean, deviation = np.split(np.stack([c["latents"] for c in clips]), 2, axis=-1)
    noise = np.random.default_rng(0).normal(size=(8, *mean.shape))
    z = mean.astype(np.float64) + deviation * noise
    assert config.data.mean == pytest.approx(z.mean(), abs=0.01)
    assert config.data.variance == pytest.approx(z.var(), rel=0.01)


def test_shorter_clips_images_and_a_copy_for_workers(root, half):
    config = config_of(root, half, batch_size=4, joint_image_frames=2)
    config.video.frames = 4
    source = data.open_source(config)
    batch = next(pipeline.train_batches(config, source))
    assert batch["latents"].shape == (4, 4 + 2, 8, 8, 8)
    assert batch["caption"].shape == (4, 1 + 2)
    whole = source.load(3, np.random.default_rng(0), 8)["latents"]
    part = source.load(3, np.random.default_rng(0), 4)["latents"]
    assert any(np.array_equal(part, whole[i : i + 4]) for i in range(5))
    again = pickle.loads(pickle.dumps(source)).load(3, np.random.default_rng(0), 8)
    np.testing.assert_array_equal(again["latents"], whole)


def shards(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.array_record"))}


def test_a_stopped_command_continues(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(encode, "SHARD_CLIPS", 4)
    monkeypatch.setattr(encode, "MAX_BATCH", 2)
    monkeypatch.setattr(encode, "MIN_HELD_OUT", 4)
    assert write(root, tmp_path / "whole") == 0
    encode_clips = codec.Latents.moments_on_host
    left = [1, 1, 1]

    def stop(self, videos, params=None):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return encode_clips(self, videos, params)

    out = tmp_path / "stopped"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(codec.Latents, "moments_on_host", stop)
        write(root, out)
    assert list(shards(out)) == ["training-00000-of-00003.array_record"]
    with pytest.raises(UserError, match="is not complete: the command"):
        data.open_source(config_of(root, out))
    first = next(out.glob("*.array_record")).stat()
    assert write(root, out) == 0
    assert next(out.glob("training-00000*")).stat() == first
    assert shards(out) == shards(tmp_path / "whole") and len(shards(out)) == 4
    capsys.readouterr()
    assert write(root, out) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert next(out.glob("training-00000*")).stat() == first


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--dtype=float32"], "dtype, 'float16' and not 'float32'"),
        (["--num_clips=13"], "clips.training, 12 and not 13"),
        (["--config.video.frames=4"], "z_shape"),
        (["--config.seed=1"], "seed, 0 and not 1"),
        (["--config.data.source=bouncing"], "data.source, 'shapes' and not 'bouncing'"),
    ],
)
def test_another_command_is_refused_in_one_line(root, half, capsys, flags, name):
    assert write(root, half, *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {half} was started with another {name}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.video.height=17"], "multiples of 2 for this autoencoder"),
        (["--num_clips=0"], "shapes: --num_clips=N, from 1 to"),
        (["--config.data.path=DIR"], "no folder of latents"),
        (["--config.data.batch_size=0"], "config.data.batch_size=0"),
        (["--autoencoder=DIR"], "none: no such folder: train an autoencoder"),
        (["--config=configs/cascade_small.py:smoke"], "of no stage of a cascade"),
    ],
)
def test_a_wrong_command_is_refused_in_one_line(root, tmp_path, capsys, flags, message):
    flags = [flag.replace("DIR", str(tmp_path / "none")) for flag in flags]
    assert write(root, tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.glob("out/*"))


def test_wrong_folders_are_refused_in_one_line(root, half, tmp_path, capsys):
    assert write(root, half, autoencoder="other") == 2
    assert "was started with another autoencoder" in capsys.readouterr().err
    (tmp_path / "notes.txt").write_text("mine")
    assert write(root, tmp_path) == 2
    assert "has other files: give a new folder" in capsys.readouterr().err
    assert write(root, tmp_path / "out", f"--config.data.path={half}") == 2
    assert "made of the data set, not of latents" in capsys.readouterr().err
    arguments = ["latents", f"--autoencoder={root / 'vae'}", f"--out={tmp_path}"]
    assert command.main(arguments) == 2
    assert "--config=FILE: the config" in capsys.readouterr().err


def test_latents_that_do_not_fit_are_refused_in_one_line(root, half):
    def refusal(**changes):
        config = config_of(root, half)
        for section, fields in changes.items():
            config[section].update(fields)
        with pytest.raises(UserError) as caught:
            data.open_source(config)
        return str(caught.value)

    other = refusal(codec={"path": str(root / "other")})
    assert "latents of another autoencoder than" in other and "give /" in other
    assert "of another autoencoder" in refusal(codec={"kind": "identity", "path": ""})
    sizes = refusal(video={"height": 32})
    assert "8 frames of 16x16, 3 channels, not config.video's 8 of 32x16" in sizes
    assert "8 frames" in refusal(video={"frames": 9})
    assert "data.stride=1, not config.data.stride=2" in refusal(data={"stride": 2})
    with pytest.raises(UserError, match="no folder of latents, and data.source='sh"):
        data.open_source(config_of(root, half / "missing"))


def test_a_copy_of_the_autoencoder_is_the_same(root, half, tmp_path):
    vae = shutil.copytree(root / "vae", tmp_path / "vae")
    path = vae / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_name_or_path": "x"}))
    assert len(data.open_source(config_of(tmp_path, half))) == CLIPS


def test_damaged_folders_are_refused_in_one_line(root, copy):
    config = config_of(root, copy)
    shard = copy / "training-00000-of-00001.array_record"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="is not a whole shard: write them again"):
        data.open_source(config)
    shard.unlink()
    with pytest.raises(UserError, match="is missing: write them again"):
        data.open_source(config)
    assert write(root, copy) == 0  # again, and that shard only
    assert shard.read_bytes() == whole
    path = copy / "latents.json"
    manifest = json.loads(path.read_text())
    write_json(path, manifest | {"version": 2})
    with pytest.raises(UserError, match="is of version 2, this program reads 1"):
        data.open_source(config)
    write_json(path, manifest | {"dtype": "float32"})
    with pytest.raises(UserError, match="changed after it was written"):
        data.open_source(config)
    path.write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        data.open_source(config)


def test_a_damaged_record_is_skipped_and_listed(root, copy, capsys):
    shard = copy / "training-00000-of-00001.array_record"
    stored = bytearray(shard.read_bytes())
    whole = data.open_source(config_of(root, copy)).load(0, np.random.default_rng(0), 8)
    at = stored.index(whole["latents"].tobytes()[:64])
    stored[at : at + 8] = bytes(8)
    shard.write_bytes(stored)
    source = data.open_source(config_of(root, copy))
    with pytest.raises(data.source.BadClip, match="clip 0 of .*damaged"):
        source.load(0, np.random.default_rng(0), 8)
    capsys.readouterr()
    assert command.main(["check", str(copy), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert len(facts["damaged"]) == 1 and "clip 0" in facts["damaged"][0]
    assert facts["read"] == CLIPS + encode.MIN_HELD_OUT
    assert facts["scale"] == pytest.approx(facts["variance"] ** -0.5, rel=1e-4)
    assert command.main(["check", str(copy)]) == 0
    assert "damaged      1\n" in capsys.readouterr().out


def test_a_shard_of_damaged_records_is_named_and_written_again(root, copy, capsys):
    shard = copy / "training-00000-of-00001.array_record"
    whole = shard.read_bytes()
    stored = bytearray(whole)
    source = data.open_source(config_of(root, copy))
    for i in range(CLIPS):
        clip = source.load(i, np.random.default_rng(0), 8)
        stored[stored.index(clip["latents"].tobytes()[:64])] ^= 1
    shard.write_bytes(stored)
    for run in (lambda: command.main(["check", str(copy)]), lambda: write(root, copy)):
        capsys.readouterr()
        assert run() == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: no training clip that was read is whole: clip ")
        assert f"of {shard}: damaged" in error and "delete the shards" in error
        assert f"and {CLIPS - 3} more" in error
    shard.unlink()
    assert write(root, copy) == 0 and command.main(["check", str(copy)]) == 0
    assert shard.read_bytes() == whole


def test_training_reads_no_autoencoder(root, half, monkeypatch):
    config = config_of(root, half, batch_size=4)
    source = data.open_source(config)
    data.resolve(config, source)
    model = build.build_model(config)

    def refuse(self):
        raise AssertionError("the autoencoder was read")

    monkeypatch.setattr(codec.Latents, "load_params", refuse)
    trainer = Trainer(config, model, source, None, sharding.make_mesh())
    assert trainer.batch_codec == {} and "latents" in trainer.batch_shapes[0]
    batch = trainer.put_batch(next(pipeline.train_batches(config, source)))
    assert batch["latents"].shape == (4, 8, 8, 8, 8)
    with pytest.raises(AssertionError, match="was read"):
        trainer.with_codec({})


def test_a_model_of_videos_is_refused(root, half):
    stage = cascade_small.get_config("smoke").unlock()
    stage.codec.update(kind="autoencoder", path=str(root / "vae"))
    stage.data.update(path=str(half), mean=0.0, variance=1.0, label_vocabulary=())
    source = data.open_source(config_of(root, half))
    model = build.build_model(stage)
    with pytest.raises(UserError, match="low_resolution, which is made of videos"):
        Trainer(stage, model, source, None, sharding.make_mesh())


def test_evaluation_opens_the_videos(root, half):
    config = config_of(root, half)
    data.open_source(config)
    assert (config.data.path, config.data.latents_dir) == ("", str(half))
    source = data.open_videos(config)
    assert source.load(0, np.random.default_rng(0), 8)["video"].dtype == np.uint8


def test_large_sets_have_few_shards():
    manifest = {
        "video": [16, 256, 256, 3], "z_shape": [16, 32, 32, 4], "dtype": "float16",
        "label_vocabulary": [],
    }  # fmt: skip
    for clips in (1, 1000, 10**6, 10**7):
        each = encode.clips_per_shard(manifest, clips)
        names = stored_latents.shard_names(
            {"clips": {"training": clips}, "clips_per_shard": each}, "training"
        )
        assert 1 <= len(names) <= encode.MAX_SHARDS
        assert each % encode.clips_per_batch(manifest) == 0
