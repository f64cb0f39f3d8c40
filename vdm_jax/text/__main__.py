"""``python -m vdm_jax.text``: write the embeddings of captions."""

import argparse
import sys

from vdm_jax import migration, runtime
from vdm_jax.data import layout
from vdm_jax.errors import UserError, printable
from vdm_jax.text.loading import DTYPES, load_encoder
from vdm_jax.text.writing import write_embeddings


def main(arguments: list[str] | None = None) -> None:
    """Write embeddings of captions.

    Raises:
      UserError: a flag of an earlier version, no captions, or no such text encoder.
    """
    parser = argparse.ArgumentParser("python -m vdm_jax.text")
    parser.add_argument(
        "--captions", required=True, type=runtime.path_type,
        help="a folder of videos, captions.jsonl, or a text file with one per line",
    )  # fmt: skip
    parser.add_argument(
        "--out", required=True, type=runtime.path_type, help="folder for the embeddings"
    )
    parser.add_argument(
        "--text_encoder", default="minilm", help="minilm, or a folder",
        type=lambda name: str(runtime.path_type(name)),
    )  # fmt: skip
    parser.add_argument(
        "--clip_skip", default=0, type=int, help="last layers of CLIP that are not read"
    )
    for name in ("dtype", "param_dtype"):
        parser.add_argument(f"--{name}", default="float32", choices=DTYPES)
    words = sys.argv[1:] if arguments is None else arguments
    for word in words:
        if renaming := migration.new_flag(word):
            raise UserError(renaming)
    flags = parser.parse_args(words)
    captions, skipped = layout.read_all_captions(flags.captions)
    for name, reason in skipped:
        print(printable(f"skipped: {name}: {reason}"), file=sys.stderr)
    dtypes = {"dtype": flags.dtype, "param_dtype": flags.param_dtype}
    encoder = load_encoder(flags.text_encoder, **dtypes, clip_skip=flags.clip_skip)
    store = write_embeddings(flags.out, captions, encoder, **dtypes)
    print(f"{len(store)} captions of up to {store.max_tokens} tokens in {flags.out}")


def _command() -> None:
    runtime.configure_jax()
    runtime.start_devices()
    main()


if __name__ == "__main__":
    runtime.run(_command)
