"""Small configs and models of random parameters that several tests share."""

import jax

from configs import shapes
from tests.networks.recorded import write_folder
from tests.text.folders import write_wordpiece
from vdm_jax import build, text
from vdm_jax.pretrained import params as params_file

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
