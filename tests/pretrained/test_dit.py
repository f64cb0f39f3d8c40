"""Names and configs of DiT and Latte, at the size of the published networks too."""

import json

import jax
import numpy as np
import pytest

from tests.parity.recorded import real_network
from tests.parity.transformer_cases import recorded_files
from vdm_jax import build
from vdm_jax.errors import UserError
from vdm_jax.networks import NETWORKS
from vdm_jax.pretrained import dit, safetensors_io
from vdm_jax.pretrained.name_maps import KERNEL
from vdm_jax.trees import named_leaves

CLASSES = {"dit_xl_2_256": dit.DIT, "latte_1": dit.LATTE}


def abstract_params(fields: dict) -> dict:
    """Return the shapes of our parameters."""
    network = NETWORKS["dit"](fields["network"], fields["z_shape"][3], [])
    conditioning = fields["conditioning"]
    conditions = []
    if fields["num_classes"]:
        names = (tuple(map(str, range(fields["num_classes"]))),)
        conditions.append(("label", build.conditions.Label(names, null_embedding=True)))
    if width := conditioning["text_dim"]:
        text = build.conditions.Text(width, pooling=False)
        conditions.append(("text", text))
    embedding = build.noise_embedding(build.schedules.Discrete(), 256)
    encoder = build.ConditioningEncoder(
        conditioning["cond_dim"], conditioning["cond_mlp_layers"], tuple(conditions),
        embedding, True,
    )  # fmt: skip

    def init(key):
        frames, height, width, channels = fields["z_shape"]
        arrays = {}
        for _, condition in conditions:
            arrays |= condition.null((1,))
        keep = {name: np.ones(1, bool) for name, _ in conditions}
        inputs, encoded = encoder.init_with_output(
            key, np.zeros(1, np.float32), frames, arrays | {"keep": keep}
        )
        z = np.zeros((1, 2, 8, 8, channels), np.float32)
        variables = network.init(key, z, inputs)
        return {
            "conditioning_encoder": encoded["params"],
            "network": variables["params"],
        }

    return jax.eval_shape(init, jax.random.key(0))


def their_shape(target: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return torch's shape of one of our parameters."""
    if not target.startswith(KERNEL):
        return shape
    return (shape[-1], shape[-2], *shape[:-2])


@pytest.mark.parametrize("name", CLASSES)
def test_names_and_shapes_of_published_networks(name):
    """Nothing is left, here or there, and both have as many parameters."""
    published = real_network(name)
    config = published["config"] | {"_class_name": CLASSES[name]}
    fields = dit.fields(config)
    names = dit.names(fields["network"])
    shapes = {n: tuple(shape) for n, shape in published["shapes"].items()}
    ours = {n: leaf.shape for n, leaf in named_leaves(abstract_params(fields)).items()}
    assert names.keys() == shapes.keys()
    assert {target.removeprefix(KERNEL) for target in names.values()} == ours.keys()
    for theirs, target in names.items():
        own = ours[target.removeprefix(KERNEL)]
        assert their_shape(target, own) == shapes[theirs], theirs
    assert sum(map(np.prod, shapes.values())) == published["parameters"]


@pytest.mark.parametrize("pipeline", ["dit", "latte"])
def test_what_is_written_back_has_the_names_of_diffusers(pipeline):
    recorded = recorded_files(pipeline)
    shapes = {
        name: shape
        for path, each in recorded["weights"].items()
        if path.startswith("transformer/")
        for name, shape in each.items()
    }
    text = recorded["texts"]["transformer/config.json"]
    fields = dit.fields(json.loads(text))
    params = jax.tree.map(lambda x: np.zeros(x.shape), abstract_params(fields))
    written = safetensors_io.to_names(params, dit.names(fields["network"]))
    assert {name: list(array.shape) for name, array in written.items()} == shapes


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("dit_xl_2_256", {"norm_type": "ada_norm_single"}, "only 'ada_norm_zero'"),
        ("dit_xl_2_256", {"out_channels": 6}, "out_channels=6: in_channels=4 or twice"),
        ("dit_xl_2_256", {"qk_norm": True}, "qk_norm=True: not a known option"),
        ("dit_xl_2_256", {"num_layers": "2"}, "num_layers='2': give a whole number"),
        ("latte_1", {"cross_attention_dim": 8}, "cross_attention_dim=8: 1152"),
        ("latte_1", {"sample_size": 128}, "sample_size=128: 127 at most"),
        ("latte_1", {"activation_fn": "geglu"}, "only 'gelu-approximate'"),
    ],
)
def test_other_networks_are_refused(name, changes, message):
    config = real_network(name)["config"] | {"_class_name": CLASSES[name]}
    with pytest.raises(UserError, match=message):
        dit.fields(config | changes)


def test_classes_have_names_of_their_own():
    names = {"0": "tench, Tinca tinca", "1": "crane", "2": "crane", "3": "tench, fish"}
    assert dit.labels(names, 4) == ("tench", "crane", "crane 2", "fish")
    with pytest.raises(UserError, match="a text for each of the 5 classes"):
        dit.labels(names, 5)
