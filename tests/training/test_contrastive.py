"""The task "contrastive": loss, negatives, a run, and measures of embeddings."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import clip_small
from tests.networks.recorded import write_folder
from tests.run_command import ROOT
from tests.sprite_cases import needs_pictures
from tests.text.folders import write_wordpiece
from vdm_jax import build, data, image_text, runs, text
from vdm_jax.commands.export import export_model
from vdm_jax.errors import UserError
from vdm_jax.metrics import clip_score
from vdm_jax.networks.image_text import ImageText, ImageTextSpec
from vdm_jax.networks.spec import LevelSpec
from vdm_jax.training import step
from vdm_jax.training.contrastive import ContrastiveTask, contrastive_loss
from vdm_jax.training.optimizer import make_optimizer
from vdm_jax.training.train import train


def directions(n, d=6, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_the_loss_is_that_of_the_paper(x64):
    """Figure 3: cross-entropies of both softmaxes against the diagonal, by loops."""
    image, text_, scale = directions(5), directions(5, seed=1), 7.0
    expected = 0.0
    for i in range(5):
        row = [np.exp(scale * image[i] @ t) for t in text_]
        column = [np.exp(scale * x @ text_[i]) for x in image]
        expected -= (
            np.log(row[i] / sum(row)) / 10 + np.log(column[i] / sum(column)) / 10
        )
    loss, accuracy = contrastive_loss(image, text_, jnp.array(scale))
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    assert accuracy == np.mean((image @ text_.T).argmax(1) == np.arange(5))
    loss, accuracy = contrastive_loss(image, image, jnp.array(100.0))
    assert loss < 1e-3 and accuracy == 1


def test_no_negative_is_the_log_of_the_batch(x64):
    """Where all embeddings are equal, the loss is log b at any scale."""
    same = np.ones((8, 4)) / 2
    np.testing.assert_allclose(contrastive_loss(same, same, 3.0)[0], np.log(8))


SPEC = ImageTextSpec(
    levels=(LevelSpec(8, 1), LevelSpec(16, 1, ("spatial_attention",))),
    head_dim=8, patch_size=4, embed_dim=16, mid_layers=(),
)  # fmt: skip


def arrays(n=4, length=3, seed=0):
    rng = np.random.default_rng(seed)
    video = rng.uniform(-1, 1, (n, 1, 16, 16, 3))
    return video, rng.normal(size=(n, length, 12)), np.ones((n, length), bool)


def test_towers_have_unit_embeddings_and_a_bounded_scale(x64):
    network, (video, tokens, mask) = ImageText(SPEC), arrays()
    params = network.init(jax.random.key(0), video, tokens, mask)["params"]
    apply = jax.jit(lambda p, *a: network.apply({"params": p}, *a))
    image, sentence, scale = apply(params, video, tokens, mask)
    for embedding in (image, sentence):
        assert embedding.shape == (4, 16) and embedding.dtype == np.float64
        np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, atol=1e-9)
    np.testing.assert_allclose(scale, 1 / 0.07)
    params["log_scale"] = jnp.array(9.0)
    np.testing.assert_allclose(apply(params, video, tokens, mask)[2], 100)
    # Masked tokens are not read; two tokens are read as their mean.
    mask[:, 2] = False
    tokens[:, 2] = 99
    shorter = apply(params, video, tokens, mask)[1]
    by_hand = tokens[:, :2].mean(1) @ params["text"]["projection"]["kernel"]
    by_hand /= np.linalg.norm(by_hand, axis=1, keepdims=True)
    np.testing.assert_allclose(shorter, by_hand, atol=1e-9)


EIGHT = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from tests.training.test_contrastive import SPEC, ImageText, arrays, contrastive_loss
network, batch = ImageText(SPEC), arrays(16)
params = jax.jit(network.init)(jax.random.key(0), *batch)["params"]
loss = lambda p, *a: contrastive_loss(*network.apply({"params": p}, *a))[0]
grad = jax.jit(jax.value_and_grad(loss))
mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
one = jax.device_get(grad(params, *batch))
split = jax.device_put(batch, NamedSharding(mesh, P("data")))
eight = jax.device_get(grad(jax.device_put(params, NamedSharding(mesh, P())), *split))
errors = jax.tree.map(lambda a, b: abs(a - b).max(), one, eight)
assert split[0].addressable_shards[0].data.shape[0] == 2 and one[0].dtype == np.float64
print(max(jax.tree.leaves(errors)))
"""


@pytest.mark.slow
def test_eight_devices_see_all_negatives():
    """Loss and gradients of a batch on eight devices are those of one device."""
    more = {"JAX_NUM_CPU_DEVICES": "8", "JAX_ENABLE_X64": "1"}
    done = subprocess.run(
        [sys.executable, "-c", EIGHT], cwd=ROOT, env={**os.environ, **more},
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-10


# --- measures ------------------------------------------------------------------------


def test_scores_of_pairs():
    image = np.array([[1.0, 0], [0, 1], [0.6, 0.8]])
    text_ = np.array([[1.0, 0], [0, -1], [1, 0]])
    np.testing.assert_allclose(clip_score.clip_scores(image, text_), [100, 0, 60])


def test_retrieval():
    """All of a perfect model, none of a shifted one, 1 / k by chance."""
    x, group = directions(40, 16), np.arange(40)
    assert clip_score.retrieval(x, x, group).all()
    assert not clip_score.retrieval(x, np.roll(x, 1, 0), group).any()
    # A text of the same group is right as well.
    assert clip_score.retrieval(x, np.roll(x, 1, 0), np.zeros(40)).all()
    chance = clip_score.retrieval(directions(2000), directions(2000, seed=1),
                                  np.arange(2000), k=4)  # fmt: skip
    assert abs(chance.mean() - 0.25) < 4 * (0.25 * 0.75 / 2000) ** 0.5
    pairs = group // 2  # others are never of the own group
    twins = x[::2].repeat(2, 0)
    assert clip_score.retrieval(twins, twins + 1e-9, pairs, k=38, seed=3).all()


# --- a run ---------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Return a folder of a small text encoder, and of embeddings of the captions."""
    folder = tmp_path / "text"
    folder.mkdir()
    write_folder(folder / "bert", "bert")
    write_wordpiece(folder / "bert")
    encoder = text.load_encoder(folder / "bert")
    source = data.open_source(clip_small.get_config("smoke"))
    text.write_embeddings(folder / "text", source.captions, encoder)
    return folder


@needs_pictures
def test_a_run_is_trained_shipped_and_measured(tmp_path, folder):
    config = clip_small.get_config("smoke").unlock()
    config.conditioning.text_dim = text.load_encoder(folder / "bert").dim
    config.data.text_embeddings_dir = str(folder / "text")
    train(config, tmp_path / "run")
    export_model(tmp_path / "run", tmp_path / "model")
    trained, shipped = map(image_text.load, (tmp_path / "run", tmp_path / "model"))
    assert (trained.step, shipped.step) == (4, -1)
    videos = np.random.default_rng(0).integers(0, 255, (3, 1, 32, 32, 3), np.uint8)
    image = trained.embed_videos(videos)
    np.testing.assert_allclose(image, shipped.embed_videos(videos), atol=5e-3)
    sentences = trained.embed_texts(["a red square", "a", "a red square"])
    np.testing.assert_array_equal(sentences[0], sentences[2])
    assert image.shape == sentences.shape == (3, 16)
    assert abs(sentences[0] - sentences[1]).max() > 1e-3
    with pytest.raises(UserError, match=r"frames of \(8, 8, 3\): this model takes"):
        trained.embed_videos(np.zeros((1, 1, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="trains the task 'contrastive', no diffusion"):
        runs.load(tmp_path / "run")
    with pytest.raises(UserError, match="trains the task 'diffusion', not 'contrast"):
        image_text.load(ROOT / "models" / "shapes")


@pytest.mark.slow
def test_a_fixed_batch_is_learned():
    """The update of a run, on one batch: every image finds its caption."""
    config = clip_small.get_config("smoke").unlock()
    config.data.update(mean=0.0, variance=1.0)
    model = build.build_model(config)
    task = ContrastiveTask(config, model)
    rng = np.random.default_rng(0)
    batch = {
        "video": rng.integers(0, 255, (8, 1, 32, 32, 3), dtype=np.uint8),
        "text": rng.normal(size=(8, 5, 384)).astype(np.float32),
        "text_mask": np.ones((8, 5), bool),
    }
    config.train.learning_rate = 0.02
    optimizer = make_optimizer(config.train)
    state = step.init_state(task.init_params(jax.random.key(0)), optimizer, False)
    update = jax.jit(
        step.make_step(task.make_loss(), optimizer, lambda *_: jnp.float32(0.02), 0.0)
    )
    for _ in range(40):
        state, metrics = update(state, {}, batch, jax.random.key(1))
    assert metrics["accuracy"] == 1 and metrics["loss"] < 0.1
    assert 1 < metrics["logit_scale"] <= 100.01


@pytest.mark.parametrize(
    "section, changes, message",
    [
        ("train", {"grad_accum_steps": 2}, "config.train.grad_accum_steps=2: the task"),
        ("data", {"joint_image_frames": 1}, "config.data.joint_image_frames=1: the ta"),
        ("conditioning", {"text_dim": 0}, "needs config.network.kind='image_text' and"),
        (
            "network",
            {"num_heads": 2},
            "config.network.num_heads: kind 'image_text' has",
        ),
        ("network", {"embed_dim": 0}, "config.network.embed_dim=0"),
    ],
)
def test_what_does_not_fit_is_refused(section, changes, message):
    config = clip_small.get_config("smoke").unlock()
    config.data.update(mean=0.0, variance=1.0)
    config[section].update(changes)
    with pytest.raises(UserError, match=message):
        ContrastiveTask(config, build.build_model(config))
