"""A trained model of images and texts: their embeddings, for measures and conditions.

model = image_text.load("runs/clip_small")
image, text = model.embed_videos(videos), model.embed_texts(captions)
metrics.clip_score.clip_scores(image, text).mean()
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import build, runs
from vdm_jax import text as text_encoders
from vdm_jax.errors import UserError
from vdm_jax.files import user_path
from vdm_jax.model import DiffusionModel, Params
from vdm_jax.networks.image_text import ImageText
from vdm_jax.pretrained import params as params_file

BATCH = 64  # clips or texts of a call of the network


@dataclasses.dataclass(frozen=True)
class ImageTextModel:
    """A network of the task "contrastive", and its parameters.

    step: number of finished updates, -1 for a shipped model.
    """

    network: ImageText
    params: Params
    config: Any
    step: int

    @functools.cached_property
    def text_encoder(self) -> text_encoders.TextEncoder:
        """The frozen encoder whose tokens the text tower reads."""
        conditioning = self.config.conditioning
        encoder = text_encoders.load_encoder(
            conditioning.text_encoder, clip_skip=conditioning.clip_skip
        )
        sha256 = conditioning.text_encoder_sha256
        if sha256 and sha256 != encoder.sha256():
            raise UserError(
                f"{conditioning.text_encoder} has other weights than the text encoder "
                "of the training"
            )
        return encoder

    def embed_videos(self, videos: np.ndarray) -> np.ndarray:
        """uint8 videos [n, f, h, w, c] -> [n, embed_dim] of length 1.

        Raises:
          UserError: frames of another size than in training.
        """
        video = self.config.video
        size = video.height, video.width, video.channels
        if videos.shape[2:] != size:
            raise UserError(f"frames of {videos.shape[2:]}: this model takes {size}")
        parts = np.array_split(videos, range(BATCH, len(videos), BATCH))
        return np.concatenate([self._run("embed_video", part) for part in parts])

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return [n, embed_dim] of length 1."""
        distinct = sorted(set(texts))
        parts = [
            self._run("embed_text", *self.text_encoder(distinct[i : i + BATCH])[:2])
            for i in range(0, len(distinct), BATCH)
        ]
        row_of = {text: row for row, text in enumerate(distinct)}
        return np.concatenate(parts)[[row_of[text] for text in texts]]

    def _run(self, method: str, *arrays: Any) -> np.ndarray:
        return np.asarray(_apply(self.network, method, self.params, *arrays))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply(network: ImageText, method: str, params: Params, *arrays: jax.Array):
    if method == "embed_video":
        arrays = (arrays[0].astype(jnp.result_type(float)) / 127.5 - 1,)
    return network.apply({"params": params}, *arrays, method=method)


def load(workdir: str | Path) -> ImageTextModel:
    """Load a run of the task "contrastive", or a shipped model of it.

    Raises:
      UserError: the workdir holds no such model, or what it holds is damaged.
    """
    workdir = user_path(workdir, "workdir")
    config = runs.read_config(workdir)
    if config.task != "contrastive":
        raise UserError(f"{workdir} trains the task {config.task!r}, not 'contrastive'")
    model: DiffusionModel = build.build_model(config)
    network: Any = model.network
    text = model.null_conditions((1,))
    video = jnp.zeros((1, *model.video_shape))
    arrays = video, text["text"], text["text_mask"]
    shapes = jax.eval_shape(network.init, jax.random.key(0), *arrays)["params"]
    shipped = workdir / "params.safetensors"
    if shipped.is_file():
        return ImageTextModel(network, params_file.read(shipped, shapes), config, -1)
    params, step = runs.load_averaged(workdir, shapes)
    return ImageTextModel(network, params, config, step)
