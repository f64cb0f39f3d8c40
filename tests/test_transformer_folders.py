"""Folders of DiT and Latte as workdirs: sampled as diffusers samples with them."""

import json
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.parity.transformer_cases import (
    ARRAYS,
    LABEL,
    NEGATIVE,
    PROMPT,
    SCALE,
    STEPS,
    noise,
    write_pipeline,
)
from tests.run_command import refused
from vdm_jax import cascade, diffusers_folder, runs, sampling
from vdm_jax.errors import UserError

RECORDED = np.load(ARRAYS)


@pytest.mark.parametrize("pipeline", ["dit", "latte"])
def test_it_samples_what_diffusers_samples(tmp_path, pipeline):
    """Half precision, all networks in shards, guidance; from the same noise."""
    folder = write_pipeline(tmp_path / "folder", pipeline)
    read = cascade.read_model(folder)
    of_labels = pipeline == "dit"
    given: Any = {"prompts": [PROMPT], "negative_prompt": NEGATIVE}
    given = {"label": str(LABEL)} if of_labels else given
    cond, negative = cascade.encode_conditions(read, 1, **given)
    read = read.with_sampling({"steps": STEPS, "guidance_scale": SCALE})
    loaded = runs.load(folder)
    eps = noise(pipeline)
    eps = eps[:, :, None] if eps.ndim == 4 else eps  # [b, c, f, h, w]
    inputs = sampling.SamplingInputs(
        cond, negative, initial_noise=np.moveaxis(eps, 1, -1)
    )
    settings = read.stages[0].settings
    z = sampling.generate(loaded.model, loaded.params, 1, settings, inputs)
    latents = np.moveaxis(RECORDED[f"{pipeline}/latents"], 1, -1)[None]
    print(pipeline, abs(z - latents).max() / latents.std())
    np.testing.assert_allclose(z, latents, atol=1e-3 * latents.std())
    videos = loaded.model.codec.decode_on_host(z, loaded.params["codec"])
    pixels = np.clip(videos[0] / 2 + 0.5, 0, 1)
    np.testing.assert_allclose(pixels, RECORDED[f"{pipeline}/pixels"], atol=1e-3)
    given = {"label": "3"} if of_labels else {"prompts": ["a dog"]}
    other, _ = cascade.encode_conditions(read, 1, **given)
    inputs = sampling.SamplingInputs(
        other, negative, initial_noise=np.moveaxis(eps, 1, -1)
    )
    z = sampling.generate(loaded.model, loaded.params, 1, settings, inputs)
    assert np.std(z - latents) > 0.05 * latents.std()


def test_classes_have_the_names_of_the_folder(tmp_path):
    """Public folders have them; what diffusers writes has numbers."""
    folder = write_pipeline(tmp_path, "dit")
    path = folder / "model_index.json"
    names = {str(i): f"class {i}, the class of {i}" for i in range(1000)}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"id2label": names}))
    config = runs.read_config(folder)
    assert config.data.label_vocabulary[0][:2] == ("class 0", "class 1")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"id2label": {"0": "a"}}))
    with pytest.raises(UserError, match="a text for each of the 1000 classes"):
        runs.read_config(folder)


def test_a_folder_of_dit_is_read_as_it_is(tmp_path):
    """Its scheduler clips x where the file says so, unlike Stable Diffusion's."""
    folder = write_pipeline(tmp_path, "dit")
    config = runs.read_config(folder)
    assert config.sample.clip_x == 0 and config.sample.guidance_scale == 4
    assert config.video.to_dict() == {
        "frames": 1, "height": 16, "width": 16, "channels": 3, "fps": 8.0,
    }  # fmt: skip
    assert diffusers_folder.text_encoder_sha256(folder) == ""
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"clip_sample": True}))
    assert runs.read_config(folder).sample.clip_x == 1


def test_latte_is_a_model_of_videos(tmp_path):
    config = runs.read_config(write_pipeline(tmp_path, "latte"))
    assert config.video.frames == 3 and config.network.attend == "v1"
    assert config.conditioning.text_dim == 20 and not config.data.label_vocabulary


def test_embeddings_that_differ_between_blocks_are_refused(tmp_path):
    """One copy is read; another that is not equal would be lost."""
    folder = write_pipeline(tmp_path, "dit")
    name = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"
    for path in (folder / "transformer").glob("*.safetensors"):
        tensors = load_file(path)
        if name in tensors:
            save_file(tensors | {name: tensors[name] + 1}, path, {"format": "pt"})
    with pytest.raises(UserError, match="second, different conditioning_encoder/noise"):
        runs.load(folder)


def test_a_transformer_of_another_class_is_refused_in_one_line(tmp_path):
    folder = write_pipeline(tmp_path, "dit")
    path = folder / "transformer" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"_class_name": "FluxTransformer2DModel"}))
    flags = f"--workdir={folder}", f"--out={tmp_path / 'out'}"
    message = "give a folder of DiTTransformer2DModel or Transformer2DModel"
    assert message in refused("sample", *flags)
