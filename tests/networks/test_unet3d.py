"""Laws of the U-Net: conditioning inputs, precision, remat and `check`."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import AbstractMesh, AxisType

from vdm_jax.diffusion import process, schedules
from vdm_jax.errors import UserError
from vdm_jax.networks import layers
from vdm_jax.networks.blocks import LAYERS, ResBlock
from vdm_jax.networks.inputs import Inputs
from vdm_jax.networks.parts import VDM_PARTS, Parts, block_type
from vdm_jax.networks.spec import LevelSpec, UNetSpec
from vdm_jax.networks.unet3d import Down, Middle, UNet3D, Up, check

TEMPORAL = ("temporal_conv", "temporal_attention")
SPEC = UNetSpec(
    levels=(LevelSpec(8, 1, TEMPORAL), LevelSpec(12, 1, ("spatial_attention",))),
    mid_layers=("temporal_conv",),
    head_dim=4,
    relative_position="bias",
    skip_downsamples=False,
)
VDM = dataclasses.replace(SPEC, relative_position="shaw", skip_downsamples=True)
ONE_LEVEL = dataclasses.replace(
    SPEC, levels=(LevelSpec(8, 1, ("spatial_attention", *TEMPORAL)),), mid_layers=()
)
B, F, HW = 2, 5, 4
MIXED = jnp.asarray([[True, True, True, False, False]])


@pytest.fixture
def build(draw, random_params, quick_jit):
    """fn(spec, f=, ...) -> (jitted fn(params, z, inputs), params, z, inputs)."""

    def make(spec, b=B, f=F, hw=HW, **fields):
        model = UNet3D(spec)
        z = draw(b, f, hw, hw, 3)
        inputs = Inputs(**{"vector": draw(b, f, 6, seed=1), **fields})
        return quick_jit(model.apply), random_params(model, z, inputs), z, inputs

    return make


def test_output_is_zero_at_initialisation(draw, quick_jit):
    """So the v-loss starts at E[v^2] = alpha^2 + sigma^2 E[x^2]."""
    x, eps = 0.5 * draw(64, 3, 4, 4, 3), draw(64, 3, 4, 4, 3, seed=1)
    level = schedules.noise_level(schedules.Cosine(), jnp.linspace(0.01, 0.99, 64))
    level = jax.tree.map(lambda a: jnp.asarray(a, x.dtype), level)
    inputs = Inputs(vector=draw(64, 6, seed=2))

    def run(key, z):
        model = UNet3D(ONE_LEVEL)
        params = model.init(key, z[:1], Inputs(vector=inputs.vector[:1]))
        return model.apply(params, z, inputs)

    output = quick_jit(run)(jax.random.key(0), process.diffuse(x, eps, level))
    assert np.all(output == 0)
    loss = (output - process.velocity(process.Prediction(x, eps), level)) ** 2
    expected = np.mean(level.alpha**2 + level.sigma**2 * np.mean(x**2))
    np.testing.assert_allclose(loss.mean(), expected, rtol=0.03)


@pytest.mark.parametrize(
    "spec",
    [SPEC, dataclasses.replace(VDM, patch_size=2)],
    ids=["small bias", "vdm shaw"],
)
def test_independent_images_equal_an_image_network(x64, build, spec):
    """Frames that are all independent equal each frame alone."""
    apply, params, z, inputs = build(spec, frame_mask=jnp.zeros((B, F), bool))
    out = apply(params, z, inputs)
    each = Inputs(
        vector=inputs.vector.reshape(B * F, 1, -1),
        frame_mask=jnp.zeros((B * F, 1), bool),
    )
    alone = apply(params, z.reshape(B * F, 1, HW, HW, 3), each)
    np.testing.assert_allclose(out, alone.reshape(out.shape), rtol=0, atol=1e-12)
    together = apply(params, z, inputs.replace(frame_mask=jnp.ones((B, F), bool)))
    assert np.abs(together - out).max() > 1e-2


def test_jacobian_between_frames(build, quick_jit):
    """Frame i depends on frame j only if both are of the video (forward mode)."""
    _, params, z, inputs = build(SPEC, b=1, frame_mask=MIXED)
    model = UNet3D(SPEC)

    def f(z):
        return model.apply(params, z, inputs)

    def column(z, frame):
        tangent = jax.nn.one_hot(frame, F, dtype=z.dtype).reshape(1, F, 1, 1, 1)
        noise = jnp.cos(jnp.arange(z.size, dtype=z.dtype)).reshape(z.shape)
        return jnp.abs(jax.jvp(f, (z,), (tangent * noise,))[1]).max((0, 2, 3, 4))

    jacobian = quick_jit(jax.vmap(column, (None, 0)))(z, jnp.arange(F)).T  # [out, in]
    m = np.asarray(MIXED[0])
    allowed = m[:, None] & m[None] | np.eye(F, dtype=bool)
    assert np.all(jacobian[~allowed] == 0)
    assert np.all(jacobian[allowed] > 1e-3)


@pytest.mark.parametrize("position", ["bias", "shaw"])
def test_time_is_relative(x64, build, draw, position):
    """A clip at later frames, with images before it, gives the same output.

    A reversed clip does not, unless the positions and the kernel over frames are made
    symmetric.
    """
    spec = dataclasses.replace(ONE_LEVEL, relative_position=position)
    vector = draw(1, 6, seed=1)
    early = jnp.asarray([[True] * 4 + [False] * 2])
    apply, params, z, _ = build(spec, b=1, f=6, vector=vector, frame_mask=early)

    def run(z, frame_mask=jnp.ones((1, 6), bool)):  # noqa: B008
        return apply(params, z, Inputs(vector=vector, frame_mask=frame_mask))

    late = run(jnp.roll(z, 2, axis=1), early[:, ::-1])
    np.testing.assert_allclose(late[:, 2:], run(z, early)[:, :4], rtol=0, atol=1e-12)
    assert np.abs(run(z[:, ::-1])[:, ::-1] - run(z)).max() > 1e-2

    def symmetric(path, leaf):
        names = [key.key for key in path]
        if names[-1] == "table":  # [heads, buckets]: past half, future half
            return jnp.concatenate([leaf[:, :16]] * 2, axis=1)
        if names[-2] == "position":  # [2 max_distance + 1, d]
            return (leaf + leaf[::-1]) / 2
        if names[-3:] == ["temporal_conv", "conv", "kernel"]:
            taps = leaf.reshape(3, -1, leaf.shape[-1])
            return ((taps + taps[::-1]) / 2).reshape(leaf.shape)
        return leaf

    params = jax.tree_util.tree_map_with_path(symmetric, params)
    np.testing.assert_allclose(run(z[:, ::-1])[:, ::-1], run(z), rtol=0, atol=1e-12)


def test_one_set_of_parameters_for_all_lengths_and_sizes(build, draw):
    """T-ARCH 5."""
    apply, params, z, inputs = build(VDM)
    assert apply(params, z, inputs).shape == z.shape
    for f, h, w in ((1, 4, 4), (7, 4, 4), (3, 8, 4)):
        z, inputs = draw(1, f, h, w, 3), Inputs(vector=draw(1, 6))
        arguments = (jax.random.key(0), z, inputs)
        out, others = jax.eval_shape(UNet3D(VDM).init_with_output, *arguments)
        assert out.shape == z.shape
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, others)


def test_concat_equals_more_channels_of_z(build, draw):
    k = draw(B, F, HW, HW, 2, seed=3)
    apply, params, z, inputs = build(
        dataclasses.replace(ONE_LEVEL, patch_size=2), concat=k
    )
    concatenated = apply(
        params, jnp.concatenate([z, k], axis=-1), inputs.replace(concat=None)
    )
    np.testing.assert_array_equal(apply(params, z, inputs), concatenated)


def test_skips_in_both_layouts(draw):
    z, inputs = draw(1, 2, 8, 4, 3), Inputs()
    for spec, sizes in ((SPEC, [8, 4]), (VDM, [8, 8, 4, 4])):
        key = jax.random.key(0)
        (_, skips), _ = jax.eval_shape(Down(spec).init_with_output, key, z, inputs)
        assert [skip.shape[2] for skip in skips] == sizes


@pytest.mark.parametrize("skip_downsamples", [False, True])
def test_layers_after_the_last_block_only(draw, skip_downsamples):
    level = LevelSpec(8, 2, TEMPORAL, layers_after_last_block_only=True)
    spec = dataclasses.replace(SPEC, levels=(level,), skip_downsamples=skip_downsamples)
    model, z = UNet3D(spec), draw(1, 2, 4, 4, 3)
    params = jax.eval_shape(model.init, jax.random.key(0), z, Inputs())["params"]
    for way, blocks in (("down", 2), ("up", 2 + skip_downsamples)):
        has = [set(params[way][f"level_0_block_{j}"]) for j in range(blocks)]
        assert has == [{"resnet"}] * (blocks - 1) + [{"resnet", *TEMPORAL}]


def test_residuals_are_added_to_skips_and_middle(build, draw, quick_jit):
    """Compare with calls of Down, Middle, Up and the output layers."""
    apply, params, z, inputs = build(VDM)
    own = {name: {"params": tree} for name, tree in params["params"].items()}

    def by_hand(z, residuals):
        x, skips = Down(VDM).apply(own["down"], z, inputs)
        x = Middle(VDM).apply(own["middle"], x, inputs) + residuals[-1]
        skips = [s + r for s, r in zip(skips, residuals[:-1], strict=True)]
        x = Up(VDM).apply(own["up"], x, skips, inputs)
        x = nn.swish(layers.GroupNorm().apply(own["norm_out"], x, inputs.vector))
        return nn.Conv(3, (3, 3)).apply(own["conv_out"], x.reshape(B * F, HW, HW, -1))

    low, skips = jax.eval_shape(Down(VDM).apply, own["down"], z, inputs)
    shapes = [place.shape for place in (*skips, low)]
    residuals = tuple(draw(*shape, seed=i) for i, shape in enumerate(shapes))
    got = apply(params, z, inputs.replace(residuals=residuals))
    expected = quick_jit(by_hand)(z, residuals).reshape(z.shape)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="1 arrays for 5 skips and middle"):
        apply(params, z, inputs.replace(residuals=residuals[:1]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_finite_at_the_ends_of_the_noise_range(draw, random_params, quick_jit, dtype):
    """Value and every gradient are finite for noise, black frames and outliers."""
    spec = dataclasses.replace(ONE_LEVEL, dtype=dtype)
    z = draw(4, 3, HW, HW, 3).at[1].set(0).at[2].mul(1e3)
    logsnr = jnp.asarray([-20.0, 20.0, 20.0, -20.0])
    inputs = Inputs(
        vector=layers.noise_level_embedding(logsnr, 6),
        frame_mask=jnp.asarray([[True, True, False]] * 4),
    )
    params = random_params(UNet3D(spec), z, inputs)

    def loss(params, z):
        return jnp.mean(UNet3D(spec).apply(params, z, inputs) ** 2)

    value, grads = quick_jit(jax.value_and_grad(loss, (0, 1)))(params, z)
    assert np.isfinite(value) and value > 0
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all(), jax.tree_util.keystr(path)


@pytest.mark.parametrize("position", ["bias", "shaw"])
def test_bfloat16_is_close_to_float32(build, position):
    spec = dataclasses.replace(ONE_LEVEL, relative_position=position)
    apply, params, z, inputs = build(spec)
    half, half_params, _, _ = build(dataclasses.replace(spec, dtype="bfloat16"))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(half_params))
    exact, rounded = apply(params, z, inputs), half(params, z, inputs)
    assert rounded.dtype == jnp.float32
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 2e-2


def test_float64_is_not_lost(x64, build):
    _, params, z, inputs = build(VDM, frame_mask=jnp.ones((B, F), bool))
    assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(params))
    jaxpr = jax.make_jaxpr(UNet3D(VDM).apply)(params, z, inputs)
    assert jaxpr.out_avals[0].dtype == jnp.float64
    assert "f32[" not in str(jaxpr) and "bf16[" not in str(jaxpr)


def test_compiled_and_not_compiled_agree(build):
    _, params, z, inputs = build(ONE_LEVEL)
    model = UNet3D(ONE_LEVEL)
    eager = model.apply(params, z, inputs)
    np.testing.assert_allclose(
        jax.jit(model.apply)(params, z, inputs), eager, rtol=1e-5, atol=1e-5
    )


def primitives(jaxpr):
    """Yield the names of all equations, also of those inside calls and remat."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in jax.tree.leaves(
            tuple(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from primitives(inner)


def test_remat_recomputes_and_changes_no_gradient(draw, random_params, quick_jit):
    """With dropout: the second forward pass has the masks of the first."""
    base = dataclasses.replace(SPEC, dropout=0.3)
    x, inputs = draw(B, 2, HW, HW, 8), Inputs(vector=draw(B, 6, seed=1))
    modules = {
        remat: block_type(dataclasses.replace(base, remat=remat), VDM_PARTS)(
            8, TEMPORAL
        )
        for remat in ("none", "full", "dots")
    }
    params = random_params(modules["none"], x, inputs)

    def grad(params, remat):
        def loss(params):
            rngs = {"dropout": jax.random.key(0)}
            return jnp.mean(
                modules[remat].apply(params, x, inputs, True, rngs=rngs) * x
            )

        return jax.grad(loss)(params)

    grads = quick_jit(lambda p: {remat: grad(p, remat) for remat in modules})(params)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads["none"]))
    for remat in ("full", "dots"):
        same = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
        jax.tree.map(same, grads[remat], grads["none"])

    def count(remat, name):
        traced = jax.make_jaxpr(functools.partial(grad, remat=remat))(params)
        return list(primitives(traced.jaxpr)).count(name)

    convolutions = {remat: count(remat, "conv_general_dilated") for remat in modules}
    assert convolutions["full"] > convolutions["none"] == convolutions["dots"]
    assert count("dots", "rsqrt") > count("none", "rsqrt")


def test_remat_holds_every_block(build):
    spec = dataclasses.replace(ONE_LEVEL, remat="full")
    _, params, z, inputs = build(spec)
    jaxpr = jax.make_jaxpr(UNet3D(spec).apply)(params, z, inputs).jaxpr
    names = [equation.primitive.name for equation in jaxpr.eqns]
    assert names.count("remat2") + names.count("checkpoint") == 4
    assert "rsqrt" in names and names.count("rsqrt") == 1  # only the output norm's


def test_activations_are_pinned_where_rules_are_set(build):
    _, params, z, inputs = build(SPEC)
    model = UNet3D(SPEC)

    def pins():
        traced = jax.make_jaxpr(lambda z: model.apply(params, z, inputs))(z)
        return list(primitives(traced.jaxpr)).count("sharding_constraint")

    assert pins() == 0
    mesh = AbstractMesh((2,), ("data",), (AxisType.Auto,))
    rules = (("batch", ("data",)),)
    with jax.sharding.use_abstract_mesh(mesh), nn.logical_axis_rules(rules):
        assert pins() >= 6 + 7  # after each residual block and each layer


def test_a_system_can_add_layer_types(draw):
    class Louder(nn.Module):
        spec: UNetSpec

        def __call__(self, x, inputs):
            return 2 * x

    parts = Parts(layers=FrozenDict({**LAYERS, "louder": Louder}))
    spec = dataclasses.replace(SPEC, levels=(LevelSpec(8, 1, ("louder",)),))
    check(spec, HW, HW, parts)
    z, inputs = draw(1, 2, HW, HW, 3), Inputs()
    model = UNet3D(spec, parts)
    shapes = jax.eval_shape(model.init, jax.random.key(0), z, inputs)
    assert set(shapes["params"]["down"]["level_0_block_0"]) == {"resnet"}
    assert set(shapes["params"]["middle"]["block_0"]) == {"resnet", "temporal_conv"}
    with pytest.raises(UserError, match="louder"):
        check(spec, HW, HW)


class Doubled(ResBlock):
    """A residual block with one more parameter, which doubles its output."""

    @nn.compact
    def __call__(self, x, inputs, train=False):
        double = self.param("double", nn.initializers.constant(2.0), ())
        block = ResBlock(self.spec, self.channels, name="inner")
        return double * block(x, inputs, train)


class Shift(nn.Module):
    """A layer that adds a learned number."""

    spec: UNetSpec

    @nn.compact
    def __call__(self, x, inputs):
        return x + self.param("shift", nn.initializers.zeros_init(), ())


def one_stem(x, features, spec, name):
    return layers.dense(layers.space_to_depth(x, spec.patch_size), features, name)


def mean_downsample(x, features, spec, name):
    b, f, h, w, c = x.shape
    return x.reshape(b, f, h // 2, 2, w // 2, 2, c).mean((3, 5))


def repeat_upsample(x, features, spec, name):
    x = x.repeat(2, axis=2).repeat(2, axis=3)
    return layers.conv(x, features, name)


def plain_head(x, inputs, spec):
    return layers.conv(x, spec.out_channels, "last")


# Slot -> another part, and what it changes: paths that are new and that are gone.
OTHER_PARTS = {
    "stem": (one_stem, set(), set()),
    "downsample": (
        mean_downsample,
        set(),
        {"down/downsample_1/kernel", "down/downsample_1/bias"},
    ),
    "upsample": (repeat_upsample, set(), set()),
    "head": (
        plain_head,
        {"last/kernel", "last/bias"},
        {"conv_out/kernel", "conv_out/bias", "norm_out/scale", "norm_out/bias"}
        | {"norm_out/vector/kernel", "norm_out/vector/bias"},
    ),
    "after_resnet": (
        (("time_shift", Shift),),
        {f"{block}/time_shift/shift" for block in (
            "down/level_0_block_0", "down/level_1_block_0", "middle/block_0",
            "middle/block_1", "up/level_0_block_0", "up/level_1_block_0",
        )},
        set(),
    ),
}  # fmt: skip


def paths(params):
    return set(flatten_dict(params["params"], sep="/"))


@pytest.mark.parametrize("slot", OTHER_PARTS)
def test_another_part_changes_its_own_parameters_only(slot, draw, random_params):
    part, new, gone = OTHER_PARTS[slot]
    args = draw(1, 2, HW, HW, 3), Inputs(vector=draw(1, 6, seed=1))
    model = UNet3D(SPEC, dataclasses.replace(VDM_PARTS, **{slot: part}))
    params, plain = (random_params(each, *args) for each in (model, UNet3D(SPEC)))
    assert paths(params) - paths(plain) == new
    assert paths(plain) - paths(params) == gone
    made = jax.jit(model.apply)(params, *args)
    expected = jax.jit(UNet3D(SPEC).apply)(plain, *args)
    assert made.shape == expected.shape and made.dtype == expected.dtype
    assert np.abs(made - expected).max() > 1e-3
    assert hash(model) == hash(UNet3D(SPEC, dataclasses.replace(model.parts)))


@pytest.mark.parametrize("remat", ["none", "full"])
def test_another_residual_block_is_in_every_block(remat, draw, random_params):
    spec = dataclasses.replace(SPEC, remat=remat)
    model = UNet3D(spec, Parts(resnet=Doubled))
    args = draw(1, 2, HW, HW, 3), Inputs(vector=draw(1, 6, seed=1))
    params = random_params(model, *args)
    found = {path for path in paths(params) if path.endswith("resnet/double")}
    assert len(found) == 6  # one per block
    halved = flatten_dict(params, sep="/")
    halved = {k: v * 0 + 1 if k.endswith("/double") else v for k, v in halved.items()}
    plain = {k.replace("/inner/", "/"): v for k, v in halved.items()}
    plain = {k: v for k, v in plain.items() if not k.endswith("/double")}
    apply = jax.jit(model.apply)
    made = apply(unflatten_dict(halved, sep="/"), *args)
    expected = jax.jit(UNet3D(spec).apply)(unflatten_dict(plain, sep="/"), *args)
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-6)
    changed = {k: v * 1.5 if k.endswith("/double") else v for k, v in halved.items()}
    difference = apply(unflatten_dict(changed, sep="/"), *args) - made
    assert np.abs(difference).max() > 1e-3


def levels(*args):
    return tuple(LevelSpec(*level) for level in args)


WRONG = {
    "levels is empty: it must hold one level or more": {"levels": ()},
    "mid_layers names temporal_conv twice": {"mid_layers": ("temporal_conv",) * 2},
    "levels[1].channels=30 must be a multiple of 4 (head_dim): nearest 28 or 32": {
        "levels": levels((8, 1), (30, 1, TEMPORAL))
    },
    "levels[0].channels=6 must be a multiple of 4 (head_dim): nearest 4 or 8": {
        "levels": levels((6, 1)),
        "mid_layers": ("spatial_attention",),
    },
    "height=20 must be a multiple of 6 (patch_size * 2^(levels - 1)): nearest 18": {
        "patch_size": 3
    },
    "height=20 must be a multiple of 32 (patch_size * 2^(levels - 1)): nearest 32": {
        "levels": levels((8, 1)) * 6
    },
}


@pytest.mark.parametrize("message", WRONG)
def test_check_names_the_nearest_valid_value(message):
    with pytest.raises(UserError) as error:
        check(dataclasses.replace(SPEC, **WRONG[message]), 20, 12)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert error.value.status == 2


@pytest.mark.parametrize("height, width", [(20, 12), (6, 2)])
def test_check_accepts_valid_specs(draw, height, width):
    for spec in (SPEC, VDM):
        check(spec, height, width)
        assert hash(spec) == hash(dataclasses.replace(spec))
        z = draw(1, 2, height, width, 3)
        out = jax.eval_shape(UNet3D(spec).init_with_output, jax.random.key(0), z)
        assert out[0].shape == z.shape


def test_head_dim_applies_only_to_levels_with_heads():
    spec = UNetSpec(levels=(LevelSpec(10, 1, ("temporal_conv",)), LevelSpec(64, 1)))
    check(spec, 2, 2)
