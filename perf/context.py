"""Memory of the dearest pieces of Imagen Video's largest stage, split by its frames.

    pip install -r requirements-plan.txt && python -m perf.context [--pieces=PATH,...]

The stage is ssr3, 128 frames of 768x1280, and a piece is a module of its U-Net, forward
in bfloat16. Each is compiled for one v5e and, with the frames over the axis context,
for 16 of them; no TPU is needed. Memory is that of arguments, result and temporaries,
also of a piece that does not fit. Writes perf/context.json, of which the pieces that
did not run stay.
"""

import argparse
import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import jax

from configs import imagen_video
from perf import rows
from vdm_jax import sharding
from vdm_jax.planning import compiler, pieces, plan, programs
from vdm_jax.planning.topology import GIB, Topology, set_environment

FILE = Path(__file__).with_suffix(".json")
COMMAND = "python -m perf.context"
TARGET = 3.0  # GiB
# The residual blocks with the largest arguments, and the first temporal convolution.
PIECES = (
    "up/level_0_block_0/resnet",
    "up/level_1_block_0/resnet",
    "down/level_0_block_0/resnet",
    "down/level_0_block_0/temporal_conv",
)
CHIPS = {1: "v5e:1x1", 16: "v5e:4x4"}


def find() -> dict[str, pieces.Piece]:
    """Return the pieces of a step that samples one video, without guidance, by path."""
    config: Any = imagen_video.get_config("ssr3").unlock()
    config.sample.update(guidance_scale=1.0)
    work = programs.Work("sample", programs.complete(config, 1, "sample", {}))
    main, *_ = plan.on_one_device(work)
    return {piece.path: piece for piece in pieces.find_pieces(main)}


def measure(piece: pieces.Piece, chips: int) -> dict[str, Any]:
    """Return the GiB of a piece on each of so many chips, and its collectives there."""
    devices = Topology.parse(CHIPS[chips]).devices()
    mesh = sharding.make_mesh(context=chips, devices=devices)
    function, (arrays, key) = pieces.piece_function(piece, backward=False)
    count = len(jax.tree.leaves(piece.params))
    everywhere = sharding.replicated(mesh)
    placed = [everywhere] * count
    placed += [sharding.batch_sharding(mesh, each.shape) for each in arrays[count:]]
    result = sharding.batch_sharding(mesh, jax.eval_shape(function, arrays, key).shape)
    jitted = jax.jit(function, in_shardings=(placed, everywhere), out_shardings=result)
    with jax.set_mesh(mesh), sharding.activation_rules(mesh):
        lowered = jitted.lower(arrays, key)
    with tempfile.TemporaryDirectory() as folder:
        dumps = Path(folder)
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # it may not fit
            lowered.compile(compiler.dump_options(dumps))
        found = compiler.read_dumps(dumps)
    assert found is not None, "the compiler failed for another reason"
    by_kind = found.collectives.by_kind()
    return {"memory_gib": found.memory / GIB, "collectives": by_kind}


def make_rows(measured: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of perf/: the memory of each piece on one chip, and on 16."""
    return [
        rows.make_row(
            f"{path}, GiB a chip of {chips}",
            measured[path][chips]["memory_gib"],
            target=TARGET if chips == "16" else None,
            better="lower",
            machine=f"{CHIPS[int(chips)]}, compiled only",
            command=COMMAND,
        )
        for path in measured
        for chips in measured[path]
    ]


def main() -> None:
    """Compile, print, write."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--pieces", default=",".join(PIECES))
    chosen = parser.parse_args().pieces.split(",")
    set_environment()
    jax.config.update("jax_platforms", "cpu")  # JAX was imported before
    measured = json.loads(FILE.read_text())["pieces"] if FILE.is_file() else {}
    found = find()
    for path in chosen:
        measured[path] = {str(n): measure(found[path], n) for n in CHIPS}
        rows.write(FILE, make_rows(measured), pieces=measured)
        for row in make_rows({path: measured[path]}):
            print(rows.format_row(row), flush=True)


if __name__ == "__main__":
    main()
