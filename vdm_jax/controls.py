"""ControlNets applied to a trained model, and videos of controls from any video.

    loaded = controls.read("models/control", trained.model, trained.config)
    trained = controls.apply(trained, [loaded])
    hint = controls.control_video(clip, "edges")

`pretrained/controlnet.py` reads folders, `networks/control.py` has the network, and
`conditions/hint.py` the controls.
"""

import dataclasses
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import files
from vdm_jax.conditions import hint
from vdm_jax.conditions.timestep import TimestepEmbedding
from vdm_jax.data.sprites import Geometry, Sprites
from vdm_jax.errors import UserError, printable
from vdm_jax.files import user_path
from vdm_jax.metrics import sprite_detection
from vdm_jax.model import DiffusionModel, Params
from vdm_jax.networks import control, sd
from vdm_jax.networks.inputs import Inputs
from vdm_jax.pretrained import controlnet, safetensors_io
from vdm_jax.runs import TrainedModel
from vdm_jax.sampling.types import Control, SamplingInputs
from vdm_jax.trees import named_leaves

MAX_SILHOUETTE = 128  # pixels: every object is searched in every size
VIDEO = "video"  # the kind of a video that is one of controls already
KINDS = (*hint.KINDS, VIDEO)


class LoadedControl(NamedTuple):
    """A ControlNet of a folder. kinds: that it was trained on, () where not known."""

    folder: Path
    network: control.ControlNet
    params: Params
    kinds: tuple[str, ...]
    checksum: str


def read(folder: str | Path, model: DiffusionModel, config: Any) -> LoadedControl:
    """Read a folder of diffusers' ControlNetModel for a model and its config.

    Raises:
      UserError: the folder is of another network, damaged, or of another base model.
    """
    folder = user_path(folder, "the ControlNet")
    config_file = controlnet.read_config(folder)
    try:
        fields = controlnet.fields(config_file)
    except UserError as error:
        raise UserError(f"{folder / 'config.json'}: {error}") from error
    _check_base(fields, model, config, folder)
    dtype = {"dtype": config.network.get("dtype", "float32")}
    unet = sd.from_config(fields["network"] | dtype, fields["channels"], ())
    width = fields["conditioning"]["cond_dim"]
    network = control.control_net(unet, fields["hint_channels"], width)
    sizes = model.video_shape[1:3], model.shape[1:3]
    control.check_hint(network, *sizes, f"{folder}: hint channels")
    paths = safetensors_io.tensor_files(folder, safetensors_io.DIFFUSERS)
    params = safetensors_io.read_by_names(
        paths, _shapes(network, fields, sizes), names(fields), jnp.float32
    )
    return LoadedControl(
        folder, network, params, fields["kinds"], files.checksum(paths)
    )


def names(fields: dict[str, Any]) -> dict[str, str]:
    """Return the table of names of a ControlNet; fields: of `controlnet.fields`."""
    return controlnet.names(fields["network"], fields["hint_channels"])


def _shapes(network: control.ControlNet, fields: dict[str, Any], sizes: Any) -> Params:
    """Return the shapes of a ControlNet's parameters."""
    conditioning = fields["conditioning"]
    channels = fields["hint_inputs"], fields["channels"]

    def init(key: jax.Array) -> Params:
        video, z = (
            jnp.zeros((1, 1, *size, c)) for size, c in zip(sizes, channels, strict=True)
        )
        inputs = Inputs(
            noise_level=jnp.zeros((1, conditioning["cond_dim"] // 4)),
            tokens=jnp.zeros((1, 1, conditioning["text_dim"])),
        )
        return network.init(key, z, inputs, video)["params"]

    return jax.eval_shape(init, jax.random.key(0))


def _check_base(
    fields: dict[str, Any], model: DiffusionModel, config: Any, folder: Path
) -> None:
    """Raise UserError unless a ControlNet is for networks of the model's shape."""
    network = config.network
    if network.kind != "sd" or not isinstance(
        model.conditioning_encoder.noise_embedding, TimestepEmbedding
    ):
        raise UserError(
            f"{folder}: a ControlNet is for a network of kind 'sd' with timesteps, as "
            "Stable Diffusion's; this model has another"
        )
    conditioning = fields["conditioning"]
    rows = (
        ("text width", conditioning["text_dim"], config.conditioning.text_dim),
        ("vector width", conditioning["cond_dim"], config.conditioning.cond_dim),
        ("channels of z", fields["channels"], model.shape[3]),
        ("channels of hints", fields["hint_inputs"], model.video_shape[3]),
        ("patch size", 1, network.get("patch_size", 1)),
        ("levels", _levels(fields["network"]), _levels(network)),
    )
    for what, theirs, ours in rows:
        if theirs != ours:
            raise UserError(
                f"{folder} is of another base: the ControlNet wants {what} {theirs}, "
                f"this U-Net has {ours}"
            )


def _levels(network: Any) -> list[tuple[int, int]]:
    """Return width and number of blocks of each level."""
    return [(level["channels"], level["blocks"]) for level in network["levels"]]


def apply(trained: TrainedModel, controls: Sequence[LoadedControl]) -> TrainedModel:
    """Return a model with ControlNets, whose residuals add up.

    It is conditioned on control_0, ..., videos of controls of its own size: see
    `sampling.SamplingInputs`. What frames read of each other, and whether norms are
    joint, is each network's own `spec`.

    Raises:
      UserError: the model has a ControlNet already.
    """
    model = with_controls(trained.model, controls)
    own = {name: each.params for name, each in _named(controls)}
    params = {**trained.params, "network": {**trained.params["network"], **own}}
    checksum = zlib.crc32(trained.checksum.encode())
    for each in controls:
        checksum = zlib.crc32(each.checksum.encode(), checksum)
    return trained._replace(model=model, params=params, checksum=f"{checksum:08x}")


def with_controls(
    model: DiffusionModel, controls: Sequence[LoadedControl]
) -> DiffusionModel:
    """Return the model of `apply`, which has no parameters.

    Raises:
      UserError: the model has a ControlNet already.
    """
    if isinstance(model.network, control.Controlled):
        raise UserError("the model has a ControlNet already")
    conditions = tuple(
        (name, hint.Hint(model.video_shape, name, each.kinds))
        for name, each in _named(controls)
    )
    rows = (*model.conditions, *conditions)
    return dataclasses.replace(
        model,
        network=control.Controlled(model.network, tuple(c.network for c in controls)),
        conditioning_encoder=dataclasses.replace(
            model.conditioning_encoder, conditions=rows
        ),
        conditions=rows,
    )


@dataclasses.dataclass(frozen=True)
class Controls:
    """ControlNets, and how they control the videos of one run.

    videos: of controls, [1, f, h, w, c] in [-1, 1], and uses: one for each of networks.
    """

    networks: tuple[LoadedControl, ...] = ()
    videos: tuple[np.ndarray, ...] = ()
    uses: tuple[Control, ...] = ()

    def apply(self, trained: TrainedModel) -> TrainedModel:
        """Return the trained model with the ControlNets, if there are any."""
        return apply(trained, self.networks) if self.networks else trained

    def add(self, inputs: SamplingInputs) -> SamplingInputs:
        """Return the inputs of sampling with the videos of controls."""
        named = {f"control_{i}": video for i, video in enumerate(self.videos)}
        cond = {**inputs.cond, **named}
        return dataclasses.replace(inputs, cond=cond, controls=self.uses)


def _named(controls: Sequence[LoadedControl]) -> list[tuple[str, LoadedControl]]:
    return [(f"control_{i}", each) for i, each in enumerate(controls)]


def check_kind(kind: str, loaded: LoadedControl) -> None:
    """Raise UserError for controls that a ControlNet was not trained on.

    Of a foreign one it is not known: a line on stderr says so.
    """
    if kind not in KINDS:
        raise UserError(f"control {kind!r}: one of {', '.join(KINDS)}")
    if kind == VIDEO:
        return
    if not loaded.kinds:
        line = f"{loaded.folder} does not say which controls it was trained on: {kind}?"
        print(printable(line), file=sys.stderr, flush=True)
    elif kind not in loaded.kinds:
        raise UserError(
            f"{loaded.folder} was trained on {', '.join(loaded.kinds)}, not on {kind}"
        )


def control_video(
    video: np.ndarray, kind: str, vocabulary: str = "everyday"
) -> np.ndarray:
    """Return the video of controls of a video, float32 [f, h, w, c] in [-1, 1].

    video: uint8 [f, h, w, c]. kind: of `KINDS`. vocabulary: of sprites, for
    silhouettes, which are of the best object of each frame, whatever it shows.

    Raises:
      UserError: silhouettes of a video that is grey or larger than sprites are.
    """
    if kind == VIDEO:
        return video.astype(np.float32) / 127.5 - 1
    if kind == hint.SILHOUETTE:
        height, width, channels = video.shape[1:]
        if channels != 3 or max(height, width) > MAX_SILHOUETTE:
            raise UserError(
                f"silhouettes are found of sprites, in colour and up to "
                f"{MAX_SILHOUETTE}x{MAX_SILHOUETTE}, not in {channels} channels of "
                f"{width}x{height}: give a video of silhouettes, or edges"
            )
        source = Sprites(vocabulary, Geometry(*video.shape[:3]), gradients=True)
        made = sprite_detection.silhouettes(video[None], source)[0]
        controls = made.astype(np.float32) / 127.5 - 1
    else:
        x = video.astype(np.float32) / 127.5 - 1
        controls = np.asarray(hint.CONTROLS[kind](jnp.asarray(x)))
    return np.broadcast_to(controls, video.shape)


def write(folder: Path, trained: TrainedModel, dtype: str = "float16") -> None:
    """Write the ControlNet of a trained model as a folder of diffusers.

    Its config names the controls that it was trained on. dtype: of the weights.

    Raises:
      UserError: the model has none, or one that diffusers has not, or a weight is not
        finite in that dtype.
    """
    network, config = trained.model.network, trained.config
    if not isinstance(network, control.Controlled):
        raise UserError("the model has no ControlNet: train one by configs/control.py")
    own, condition = network.controls[0], trained.model.condition("control_0")
    channels = trained.model.shape[3]
    fields = controlnet.config_fields(
        own, config.conditioning.text_dim, channels, condition.shape[3], condition.kinds
    )
    table = names(controlnet.fields(fields))
    params = trained.params["network"]["control_0"]
    paths = {target.rpartition(" ")[2] for target in table.values()}
    if own.spec.patch_size > 1 or paths != named_leaves(params).keys():
        raise UserError("diffusers has no ControlNet of this network")
    path = folder / f"{safetensors_io.DIFFUSERS}.safetensors"
    safetensors_io.write(path, safetensors_io.to_names(params, table), dtype)
    files.write_json(folder / "config.json", fields, indent=2)
