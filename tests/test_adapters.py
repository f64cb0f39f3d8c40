"""LoRAs of a trained model: equal to diffusers', as flags, and trained here."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from safetensors.numpy import load_file, save_file

from tests import small_model
from tests.networks import small_sd
from tests.parity import lora_cases
from tests.parity.drawn import normal
from tests.parity.recorded import drawn_weights, load
from tests.parity.sd_cases import UNETS
from tests.run_command import ROOT, call, refused
from vdm_jax import adapters, runs, sampling, sharding, text
from vdm_jax.conditions.text import NULL_TEXT, Text
from vdm_jax.distillation.driver import with_loras
from vdm_jax.errors import UserError
from vdm_jax.model import DiffusionModel
from vdm_jax.networks import lora
from vdm_jax.networks.clip import ClipText, ClipTextSpec
from vdm_jax.pretrained import lora_files, name_maps, safetensors_io, sd_unet
from vdm_jax.training.train import train
from vdm_jax.trees import named_leaves

SPEC = ClipTextSpec(60, 16, 24, 40, 2, 3)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Return the recorded text encoder."""
    folder = tmp_path_factory.mktemp("clip")
    recorded = load("clip_text")
    (folder / "config.json").write_text(str(recorded["quick_gelu/config"]))
    shapes = json.loads(str(recorded["quick_gelu/shapes"]))
    path = folder / "model.safetensors"
    save_file(drawn_weights("clip_text/quick_gelu", shapes), path)
    network = ClipText(SPEC)
    ids = np.zeros((2, 1, 1), np.int32)
    like = jax.eval_shape(network.init, jax.random.key(0), *ids)["params"]
    params = safetensors_io.read((path,), like, name_maps.CLIP_TEXT, jnp.float32)
    return text.TextEncoder(str(folder), 16, 24, list, network, params)


@pytest.fixture(scope="module")
def trained(encoder):
    """Return the recorded U-Net as a trained model."""
    network, conditioning = small_sd.build(UNETS["sd1"])
    conditions = (("text", Text(24, pooling=False)),)
    model = DiffusionModel(
        network, conditioning.clone(conditions=conditions), small_sd.SCHEDULE,
        small_sd.SCHEDULE, (1, 8, 8, 4), conditions=conditions, prediction_type="eps",
    )  # fmt: skip
    section = sd_unet.unet_fields(UNETS["sd1"])["network"]
    config = ConfigDict(
        {"network": section, "conditioning": {"text_encoder": encoder.name}}
    )
    params = small_sd.drawn_params("sd1")
    return runs.TrainedModel(model, params, config, -1, "12345678")


def loras(folder, trained, weights):
    """Return recorded files, by name, with their weights."""
    files = []
    for name, scale in weights.items():
        tensors, metadata = lora_cases.files()[name]
        files.append((folder / f"{name}.safetensors", scale))
        save_file(tensors, files[-1][0], metadata)
    return adapters.read(files, trained.model, trained.config)


@functools.partial(jax.jit, static_argnums=0)
def unet_output(model, params):
    z, logsnr, tokens = small_sd.recorded_inputs("sd1", jnp.float32)
    raw = dict(text=tokens, text_mask=jnp.ones(tokens.shape[:2], bool))
    cond = model.raw_conditions(raw | dict(zip(NULL_TEXT, raw.values(), strict=True)))
    inputs = model.conditioning_encoder.apply(
        {"params": params["conditioning_encoder"]}, logsnr, 1, cond
    )
    made = model.network.apply({"params": params["network"]}, z, inputs)
    return jnp.moveaxis(made[:, 0], -1, 1)


def text_output(encoder):
    mask = np.ones(lora_cases.IDS.shape, bool)
    return encoder.network.apply({"params": encoder.params}, lora_cases.IDS, mask)


CASES = {name: {name: 1.0} for name in lora_cases.files()}


@pytest.mark.parametrize("case", [*CASES, "several"])
def test_equal_to_diffusers_merged_and_unmerged(tmp_path, trained, encoder, case):
    recorded = load("lora")
    read = loras(tmp_path, trained, CASES.get(case, lora_cases.SEVERAL))
    before = jax.tree.map(np.array, trained.params)
    merged, unmerged = read.apply(trained), read.apply(trained, merged=False)
    both = (merged, unmerged) if case == "several" else (merged,)
    for each in both:
        made = unet_output(each.model, each.params)
        np.testing.assert_allclose(made, recorded[f"{case}/unet"], atol=1e-5)
    assert not lora.deltas_of(merged.params) and lora.deltas_of(unmerged.params)
    # The base is never changed, so that it is there when LoRAs are removed.
    jax.tree.map(np.testing.assert_array_equal, trained.params, before)
    assert merged.checksum == unmerged.checksum != trained.checksum
    made = text_output(read.apply_to_text_encoder(encoder))
    np.testing.assert_allclose(made, recorded[f"{case}/text"], atol=2e-5)


def test_no_lora_is_the_model_itself(trained, encoder):
    none = adapters.read([], trained.model, trained.config)
    assert none.apply(trained) is trained
    jax.tree.map(
        lambda a, b: None if a is b else pytest.fail("copied"),
        none.apply_to_text_encoder(encoder).params, encoder.params,
    )  # fmt: skip


def test_files_and_scales_of_flags():
    assert adapters.parse("a.safetensors") == ("a.safetensors", 1.0)
    assert adapters.parse("a.safetensors:-0.5") == ("a.safetensors", -0.5)
    assert adapters.parse("v1:2.safetensors") == ("v1:2.safetensors", 1.0)
    assert adapters.parse("12:30/a") == ("12:30/a", 1.0)
    assert adapters.parse("a:b:1e-1") == ("a:b", 0.1)


@pytest.mark.parametrize(
    "value",
    (
        *("", ":", ":1", "a:", "a:nan", "a:inf", "a:1e999", "a:0,8", "a:0x1"),
        *("a:1_0", "a: 2", "a:\u0663", "a:1:x"),
    ),
)
def test_a_scale_is_a_plain_number(value):
    with pytest.raises(UserError, match="^--lora=.*: FILE or FILE:SCALE with a number"):
        adapters.parse(value)


# --- commands and training -----------------------------------------------------------


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Return a small model of kind "sd" with a CLIP text encoder."""
    return small_model.write_sd_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def base(workdir):
    return runs.load(workdir)


@pytest.fixture(scope="module")
def file(base, tmp_path_factory):
    """Return a file for the attention of that model and of its text encoder."""
    modules = adapters.unet_modules(base.model, base.config)
    tensors = {}
    for name in [n for n in modules if ".attn" in n]:
        in_, out = modules[name].shape
        for end, shape in (("A", (2, in_)), ("B", (out, 2))):
            tensors[f"unet.{name}.lora_{end}.weight"] = normal(f"{name}{end}", shape)
    query = (
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer"
    )
    tensors[f"{query}.down.weight"] = normal("down", (2, 24))
    tensors[f"{query}.up.weight"] = normal("up", (24, 2))
    path = tmp_path_factory.mktemp("lora") / "style.safetensors"
    save_file(tensors, path)
    return path


def test_sample_with_loras(workdir, file, base, tmp_path):
    """Twice with half of it, that is with the whole, to the videos of the library."""
    flags = [f"--workdir={workdir}", "--prompt=a cat", "--num=2", "--steps=2"]
    half = f"--lora={file}:0.5"
    done = call("sample", *flags, half, half, f"--out={tmp_path}/two")
    assert done.returncode == 0, done.stderr
    made = np.load(tmp_path / "two" / "samples.npz")["videos"]
    read = adapters.read([(file, 1.0)], base.model, base.config)
    encoder = text.load_encoder(base.config.conditioning.text_encoder)
    videos = {}
    for name, tuned in (("with", read), ("without", adapters.Loras())):
        tokens, mask, _ = tuned.apply_to_text_encoder(encoder)(["a cat"] * 2)
        settings = sampling.Settings.from_config(base.config.sample)
        cond = {"text": np.asarray(tokens), "text_mask": np.asarray(mask)}
        own = tuned.apply(base)
        inputs = sampling.SamplingInputs(cond)
        sampled = sampling.sample(own.model, own.params, 2, settings, inputs)
        videos[name] = sampling.to_uint8(sampled).astype(int)
    assert abs(made - videos["with"]).max() <= 1
    assert abs(made - videos["without"]).max() > 20


def test_what_is_refused_in_one_line(workdir, file, base, tmp_path):
    tensors = load_file(file)
    renamed = {name.replace("attn1", "attn9"): a for name, a in tensors.items()}
    save_file(renamed, tmp_path / "renamed.safetensors")
    out = f"--out={tmp_path}/s"
    message = refused(
        "sample", f"--workdir={workdir}", f"--lora={tmp_path}/renamed.safetensors", out
    )
    assert f"of its {len(tensors)} tensors belong to modules of this model" in message
    message = refused(
        "sample", f"--workdir={ROOT}/models/shapes", f"--lora={file}", out
    )
    assert "a LoRA is for a network of kind 'sd' or 'wan', not 'unet'" in message
    with pytest.raises(UserError, match="unknown are text_encoder"):
        adapters.read([(file, 1.0)], base.model, base.config, "minilm")


def test_a_teacher_with_a_lora(workdir, base, file, tmp_path):
    """Its checksum tells it from the base; captions were embedded without a LoRA."""
    with pytest.raises(UserError, match="changes the text encoder, and the captions"):
        with_loras(base, [(str(file), 1.0)])
    unet = {k: a for k, a in load_file(file).items() if k.startswith("unet")}
    save_file(unet, tmp_path / "unet.safetensors")
    files = [(str(tmp_path / "unet.safetensors"), 0.5)]
    on_mesh = runs.load(workdir, sharding.make_mesh())
    teacher = with_loras(on_mesh, files)
    expected = adapters.read([(file, 0.5)], base.model, base.config).apply(base)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        teacher.params, expected.params,
    )  # fmt: skip
    assert teacher.checksum == expected.checksum != base.checksum
    assert with_loras(on_mesh, []) is on_mesh


@pytest.fixture(scope="module")
def pictures(base, tmp_path_factory):
    """Return a folder of four pictures with captions and their embeddings."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a cat\n")
    encoder = text.load_encoder(base.config.conditioning.text_encoder)
    text.write_embeddings(folder / "text", ["a cat"], encoder)
    return folder


@pytest.fixture
def tuning(workdir, pictures):
    """Return a config that tunes the model by a LoRA on the pictures."""
    config = small_model.sd_config()
    config.data.update(
        source="folder", path=str(pictures), validation_fraction=0.0,
        text_embeddings_dir=str(pictures / "text"), mean=None, variance=None,
    )  # fmt: skip
    config.network.update(lora_rank=2)
    config.init_from = str(workdir)
    config.train.update(
        steps=4, checkpoint_every=4, sample_every=0, eval_every=0, weight_decay=0.1,
        ema_decay=0.0, learning_rate=0.01,
    )  # fmt: skip
    return config


@pytest.mark.slow
def test_a_lora_trains_alone_and_is_written(tuning, base, tmp_path):
    """From the base bit for bit; the file changes the base as the run's leaves do."""
    state = train(tuning, tmp_path / "run")
    assert tuning.train.trainable[-1] == (".*", False)
    leaves, own = named_leaves(state.params), named_leaves(base.params)
    new = leaves.keys() - own.keys()
    assert len(new) == 48 and all("/lora_" in name for name in new)
    for name, leaf in own.items():
        np.testing.assert_array_equal(leaves[name], leaf)
    assert min(abs(leaves[n]).max() for n in new if n.endswith("lora_up")) > 1e-3
    moments = [leaf.shape for leaf in jax.tree.leaves(state.opt_state)]
    assert len([shape for shape in moments if len(shape) > 1]) == 2 * len(new)

    loaded = runs.load(tmp_path / "run")
    with pytest.raises(UserError, match="has no LoRA: set config.network.lora_rank"):
        adapters.write(tmp_path / "no" / "x", {}, loaded.model, tuning)
    assert not (tmp_path / "no").exists()
    adapters.write(tmp_path / "x.safetensors", loaded.params, loaded.model, tuning)
    tuned = adapters.read([(tmp_path / "x.safetensors", 1.0)], base.model, base.config)
    merged = tuned.apply(base)
    expected = named_leaves(lora.merge(loaded.params))
    for name, leaf in named_leaves(merged.params).items():
        np.testing.assert_allclose(leaf, expected[name], atol=1e-6)
    assert (loaded.model.mean, loaded.model.variance) == (-0.3, 0.2)  # the base's
    zero = {path: (d, 0 * u) for path, (d, u) in lora.deltas_of(loaded.params).items()}
    start = loaded._replace(params=lora.attach(base.params, zero))
    before, first, unmerged, after = (
        sampling.sample(m.model, m.params, 1, sampling.Settings(2, "ddim"))
        for m in (base, start, loaded, merged)
    )
    np.testing.assert_array_equal(first, before)
    assert abs(unmerged - before).max() > 1e-3
    np.testing.assert_allclose(unmerged, after, atol=1e-5)
    done = call(
        "export", f"--workdir={tmp_path}/run", f"--out={tmp_path}/l", "--format=lora"
    )
    assert done.returncode == 0, done.stderr
    written = load_file(tmp_path / "l" / lora_files.FILE)
    assert written.keys() == load_file(tmp_path / "x.safetensors").keys()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"lora_modules": "no"}, "config.network.lora_modules='no' matches no module"),
        ({"lora_modules": "("}, "network.lora_modules='\\('"),
        ({"lora_rank": -1}, "config.network.lora_rank=-1"),
    ],
)
def test_a_lora_without_modules_is_refused(tuning, tmp_path, changes, message):
    tuning.network.update(changes)
    with pytest.raises(UserError, match=message):
        train(tuning, tmp_path / "run")


def test_a_lora_tunes_another_model(tuning, tmp_path):
    tuning.diffusion.prediction_type = "x"
    tuning.diffusion.precondition = False
    with pytest.raises(UserError, match="prediction_type='x': the model .* has 'v'"):
        train(tuning, tmp_path / "run")
    tuning.init_from = ""
    with pytest.raises(UserError, match="lora_rank=2 tunes a model: set"):
        train(tuning, tmp_path / "run")
