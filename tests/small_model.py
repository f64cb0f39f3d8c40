"""Small configs and models of random parameters that several tests share."""

import jax
import numpy as np

from configs import shapes
from tests.networks.recorded import write_folder
from tests.text.folders import write_clip, write_wordpiece
from vdm_jax import build, controls, runs, sampling, text
from vdm_jax.pretrained import params as params_file
from vdm_jax.sampling import Observation, SamplingInputs

VOCABULARY = (("a", "b", "c"), ("x", "y"))


def smoke_config():
    """configs/shapes.py:smoke with VOCABULARY and pixel statistics, unlocked."""
    config = shapes.get_config("smoke").unlock()
    config.data.update(label_vocabulary=VOCABULARY, mean=-0.3, variance=0.2)
    return config


def write_model(folder, config):
    """Write a shipped model of random parameters."""
    model = build.build_model(config)
    keys = iter(jax.random.split(jax.random.key(2), 1000))
    params = jax.tree.map(
        lambda p: p + 0.2 * jax.random.normal(next(keys), p.shape),
        model.init(jax.random.key(0)),
    )
    folder.mkdir(parents=True)
    params_file.write(folder / "params.safetensors", params)
    (folder / "config.json").write_text(config.to_json_best_effort())


def write_text_model(folder):
    """Write a model that is conditioned on text, with a small BERT as its encoder."""
    bert = folder / "bert"
    write_folder(bert, "bert")
    write_wordpiece(bert)
    config = shapes.get_config("smoke").unlock()
    config.video.update(frames=4, height=8, width=8, fps=4)
    config.data.update(label_vocabulary=(), mean=-0.3, variance=0.2)
    config.conditioning.update(
        text_dim=text.load_encoder(bert).dim, text_dropout=0.1, text_encoder=str(bert)
    )
    config.sample.update(guidance_scale=2.0, steps=2)
    config.network.update(
        levels=(dict(channels=8, blocks=1, layers=("temporal_conv",)),), mid_layers=()
    )
    write_model(folder / "model", config)
    return folder / "model"


# Fields of the section diffusion for the timesteps of Stable Diffusion.
DISCRETE = {"schedule": "discrete", "logsnr_shift": 0.0, "train_logsnr_shifts": ()}


def sd_config():
    """Return configs/shapes.py:smoke with a network of kind "sd", one frame and text.

    Its text encoder is to be filled in.
    """
    config = shapes.get_config("smoke").unlock()
    config.video.update(frames=1, height=8, width=8)
    config.data.update(label_vocabulary=(), mean=-0.3, variance=0.2)
    config.conditioning.update(
        text_dim=24, text_dropout=0.1, frame_index_embedding=False
    )
    config.sample.update(guidance_scale=2.0, steps=2)
    layers = ("spatial_transformer",)
    config.network = {
        "kind": "sd", "levels": (dict(channels=8, blocks=1, layers=layers),),
        "mid_layers": (), "num_heads": (2,), "norm_groups": 4,
    }  # fmt: skip
    return config


def controlled_config():
    """Return `sd_config` of a model that diffusers has, so that it has ControlNets."""
    config = sd_config()
    config.diffusion.update(DISCRETE, prediction_type="v", precondition=False)
    config.conditioning.update(cond_dim=32, cond_mlp_layers=1, text_pooling=False)
    config.network["mid_layers"] = ("spatial_transformer",)
    config.sample.update(clip_x=0.0, sampler="ddim", guidance_scale=1.0)
    return config


def random_params(model, seed):
    """Return parameters without zeros."""
    like = jax.eval_shape(model.init_params, jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), like
    )


def write_controlnet(folder, image):
    """Write a ControlNet of an image model of `controlled_config`, on luma and edges.

    Returns the model that it was trained in.
    """
    config = controlled_config()
    config.control = {"kinds": ("luma", "edges"), "hint_channels": (6,)}
    model = build.build_model(config)
    own = {"control_0": random_params(model, 1)["network"]["control_0"]}
    params = {**image.params, "network": {**image.params["network"], **own}}
    trained = runs.TrainedModel(model, params, config, 0, "1")
    controls.write(folder, trained)
    return trained


def write_sd_model(folder, config=None, **diffusion):
    """Write a model, by default of `sd_config`, with a small CLIP text encoder.

    diffusion: fields of that section.
    """
    config, out = config or sd_config(), folder / "model"
    config.diffusion.update(diffusion)
    config.conditioning.text_encoder = str(write_clip(folder / "pipeline"))
    like = jax.eval_shape(build.build_model(config).init_params, jax.random.key(0))
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda p: rng.normal(0, 0.3, p.shape), like)
    out.mkdir()
    params_file.write(out / "params.safetensors", params)
    (out / "config.json").write_text(config.to_json_best_effort())
    return out


def area_mean_errors(run, mean: float) -> list[float]:
    """Return errors of samples whose 4x4 area means are known, without and with them.

    run: a model of 8 x 16 x 16 pixels. mean: of all areas.
    """
    low = np.full((1, 8, 4, 4, 3), mean, np.float32)
    none = np.zeros((1, 8, 16, 16, 1), bool)
    known = Observation(np.zeros((1, 8, 16, 16, 3), np.float32), none, low)
    errors = []
    for weight in (1e-9, 1.0):
        settings = sampling.Settings(8, "ddim", reconstruction_weight=weight)
        inputs = SamplingInputs(observation=known)
        made = sampling.sample(run.model, run.params, 1, settings, inputs)
        means = made.reshape(1, 8, 4, 4, 4, 4, 3).mean((3, 5))
        errors.append(abs(means - low).mean())
    return errors
