"""What a model is told in training beside labels: captions' text, and given videos."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from vdm_jax import sampling, text
from vdm_jax.checkpoint import on_first_process
from vdm_jax.data import pipeline
from vdm_jax.data.embeddings import INDEX, EmbeddingStore
from vdm_jax.data.source import Source
from vdm_jax.errors import UserError
from vdm_jax.model import DiffusionModel


class CaptionEmbeddings:
    """Embeddings of the captions of batches, padded to the longest there is."""

    def __init__(self, folder: str):
        self.embeddings = EmbeddingStore(folder)
        self.dim, self.max_tokens = self.embeddings.width, self.embeddings.longest
        # Named after the captions and the encoder's weights.
        self.digest = str(self.embeddings.metadata["keys"])

    def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple]:
        """Of what a batch gets whose captions are an array of this shape."""
        return {
            "text": ((*shape, self.max_tokens, self.dim), np.float32),
            "text_mask": ((*shape, self.max_tokens), np.bool_),
        }

    def __call__(self, captions: Any) -> dict[str, np.ndarray]:
        """Strings [...] -> text [..., longest, width] and text_mask [..., longest]."""
        captions = np.asarray(captions)
        made = {
            name: np.zeros(shape, dtype)
            for name, (shape, dtype) in self.shapes(captions.shape).items()
        }
        for at, caption in np.ndenumerate(captions):
            tokens = self.embeddings[str(caption)]
            made["text"][at][: len(tokens)] = tokens
            made["text_mask"][at][: len(tokens)] = True
        return made


def open_caption_embeddings(config: Any, source: Source) -> CaptionEmbeddings | None:
    """The embeddings that config.data.text_embeddings_dir names; fills in who made them.

    They are made there first if nothing is and the source knows all of its captions.

    Raises:
      UserError: embeddings without a model that is told by text, or of another width,
        or such a model without them.
    """
    folder, width = config.data.text_embeddings_dir, config.conditioning.text_dim
    if not folder and width:
        raise UserError(
            f"config.conditioning.text_dim={width} and no config.data.text_embeddings_dir: "
            "the folder that python -m vdm_jax.text wrote of the captions"
        )
    if not folder:
        return None
    on_first_process(lambda: _embed(source, folder, width))
    texts = CaptionEmbeddings(folder)
    if width != texts.dim:
        raise UserError(
            f"config.conditioning.text_dim={width}: the embeddings in {folder} are "
            f"{texts.dim} wide; set it to that"
        )
    about = texts.embeddings.metadata
    config.conditioning.text_encoder = about["encoder"]
    config.conditioning.text_encoder_sha256 = about.get("weights", "")
    return texts


def _embed(source: Source, folder: str, width: int) -> None:
    """The captions of a source that knows them all, where there are none yet."""
    captions = getattr(source, "captions", None)
    if captions is None or (Path(folder) / INDEX).is_file():
        return
    encoder = text.load()
    if width != encoder.width:
        raise UserError(
            f"config.data.text_embeddings_dir={folder} has none, and those that training would "
            f"make there are {encoder.width} wide, config.conditioning.text_dim="
            f"{width}: set it to that, or write others by python -m vdm_jax.text"
        )
    print(f"embedding {len(captions):,} captions in {folder}", flush=True)
    text.write_embeddings(folder, captions, encoder)


def add_text(batch: pipeline.Batch, texts: CaptionEmbeddings | None) -> pipeline.Batch:
    """A batch, and the text of its captions."""
    return batch if texts is None else batch | texts(batch["caption"])


def preview_conditions(
    config: Any,
    model: DiffusionModel,
    source: Source,
    texts: CaptionEmbeddings | None,
    num: int,
    label: str,
    seed: int,
) -> dict[str, Any]:
    """What `num` samples are asked for, as keywords of sampling.sample.

    Labels as `label` says; the captions of held-out clips (of training ones where none
    are held out), and for a stage what these clips are brought down to.
    """
    found: dict[str, Any] = {"labels": sampling.draw_labels(model, num, label, seed)}
    if texts is None and model.low_resolution is None:
        return found
    part = source.split(True)
    part = part if len(part) else source.split(False)
    clips = list(pipeline.fixed_clips(config, part, num, seed))
    if texts is not None:
        told = texts([clip["caption"][0] for clip in clips])
        found["text"] = sampling.TextEmbeddings(told["text"], told["text_mask"])
    if model.low_resolution is not None:
        video = np.concatenate([clip["video"] for clip in clips])
        found["low"] = np.asarray(
            jax.jit(model.low_resolution.downsample)(model.encode(video))
        )
    if texts is not None and model.label_vocabulary:  # of the same clips
        found["labels"] = np.concatenate([clip["label"] for clip in clips])
    return found
