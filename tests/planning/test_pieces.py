"""Pieces of networks: they have all products, and the right gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.small_model import controlled_config, smoke_config
from vdm_jax import build
from vdm_jax.networks.blocks import ResBlock
from vdm_jax.planning import pieces, plan, programs
from vdm_jax.planning.flops import product_flops
from vdm_jax.planning.programs import Work


def main_program(config, kind, batch=1):
    work = Work(kind, programs.complete(config, batch, kind, {}))
    return plan.on_one_device(work)[0]


def unet():
    config = smoke_config()
    config.train.optimizer = "adam"
    config.network.dropout = 0.1
    return config


def controlled():
    config = controlled_config()
    config.control = {"kinds": ("edges",), "hint_channels": (6,)}
    config.sample.steps = 2
    return config


def network_flops(config, batch):
    """Return the FLOPs of a call of the whole network."""
    model = build.build_model(programs.complete(config, batch, "train", {}))
    frames = model.shape[0] + config.data.joint_image_frames
    n = (batch, 1 + config.data.joint_image_frames) if frames > model.shape[0] else (1,)
    arrays = model.null_conditions(n)
    if len(n) == 2:
        arrays["frame_mask"] = np.ones((batch, frames), bool)
    cond = arrays | model.raw_conditions(arrays)
    params = jax.eval_shape(model.init_params, jax.random.key(0))

    def network(params):
        logsnr = jnp.zeros(batch)
        encoder = {"params": params["conditioning_encoder"]}
        inputs = model.conditioning_encoder.apply(encoder, logsnr, frames, cond)
        z = jnp.zeros((batch, frames, *model.shape[1:]))
        return model.network.apply({"params": params["network"]}, z, inputs)

    def encoder(params):
        variables = {"params": params["conditioning_encoder"]}
        return model.conditioning_encoder.apply(
            variables, jnp.zeros(batch), frames, cond
        )

    return product_flops(network, params) - product_flops(encoder, params)


@pytest.mark.parametrize(("config", "kind"), [(unet, "train"), (controlled, "sample")])
def test_the_pieces_have_all_products_of_the_network(config, kind, monkeypatch):
    monkeypatch.setitem(programs.MAX_TOKENS, "sd", 1)  # as in `null_conditions`
    found = pieces.find_pieces(main_program(config(), kind))
    total = sum(piece.calls * pieces.piece_flops(piece, False) for piece in found)
    assert total == network_flops(config(), 1) > 0


def test_pieces_of_one_kind_are_compiled_once():
    found = pieces.find_pieces(main_program(unet(), "train"))
    names = [piece.name for piece in found]
    assert len(names) == len({*names}) and max(piece.calls for piece in found) > 1


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_the_function_of_a_piece_has_its_gradients(remat, x64):
    config = unet()
    config.network.dropout = 0.0
    found = pieces.find_pieces(main_program(config, "train"))
    piece = next(each for each in found if isinstance(each.module, ResBlock))
    function, shapes = pieces.piece_function(piece, True, remat)
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=s.shape).astype(s.dtype)) for s in shapes[0]]
    weight = jnp.asarray(rng.normal(size=shapes[2].shape))
    out, [grads] = function(arrays, jax.random.key(0), weight)
    params, args = jax.tree.unflatten(
        jax.tree.structure((piece.params, piece.args[:2])), arrays
    )

    def loss(params, x):
        y = piece.module.apply({"params": params}, x, args[1])
        return (y * weight).sum()

    by_params, by_x = jax.grad(loss, (0, 1))(params, args[0])
    count = len(jax.tree.leaves(params))
    expected = [*jax.tree.leaves(by_params), by_x]
    for got, want in zip(grads[: count + 1], expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
    assert out.shape == shapes[2].shape


def test_the_optimiser_of_a_shard_returns_a_shard():
    program = main_program(unet(), "train")
    state = program.args[0]
    function, shapes = pieces.optimiser_function(state, unet().train)
    params, average, moments = jax.eval_shape(function, *shapes)
    for got, want in zip(
        jax.tree.leaves((params, average, moments)),
        jax.tree.leaves((state.params, state.params, state.opt_state)),
        strict=True,
    ):
        assert got.shape == want.shape and got.dtype == want.dtype
