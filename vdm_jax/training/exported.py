"""Training steps that an earlier process traced, in the user's cache folder.

To trace a network takes seconds, also where its program has been compiled before. A
step is therefore exported when it is traced (`jax.export`: the program in StableHLO and
the types of its arguments, no code of Python), and the exported step is what is
compiled. So a later process finds both, the export and the compiled program, and has
the same program bit for bit.
"""

import contextlib
import functools
import gc
import hashlib
import importlib.metadata
import json
import sys
import sysconfig
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax import export

import vdm_jax
from vdm_jax import files, runtime
from vdm_jax.errors import UserError

MAX_FILES = 64  # the newest are kept
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


class CompiledStep(NamedTuple):
    """A compiled function of a state and other arguments, which donates its state."""

    compiled: jax.stages.Compiled
    structure: Any  # of the state

    def __call__(self, state: Any, *others: Any) -> tuple[Any, dict[str, jax.Array]]:
        """Return the next state, and scalars by name."""
        leaves, scalars = self.compiled(jax.tree.leaves(state), *others)
        return jax.tree.unflatten(self.structure, leaves), scalars


def compile_step(
    step: Callable,
    state: Any,
    *others: Any,
    out_shardings: Any = None,
    identity: Any = None,
) -> CompiledStep:
    """Compile a step: (state, *others) -> (state, scalars), which donates its state.

    Args:
      state, others: arrays or shapes. The others are built of dicts and lists.
      out_shardings: (a tree like the state, of the scalars); None lets XLA choose.
      identity: plain data that decides what is traced, apart from code, versions,
        devices and the arguments. None: the step is neither read nor stored, nor is
        that of several processes.
    """
    structure = jax.tree.structure(state)

    def flat(leaves: list[Any], *others: Any) -> tuple[list[Any], Any]:
        new_state, scalars = step(jax.tree.unflatten(structure, leaves), *others)
        return jax.tree.leaves(new_state), scalars

    if out_shardings is not None:
        of_state, of_scalars = out_shardings
        out_shardings = jax.tree.leaves(of_state), of_scalars
    jit = functools.partial(jax.jit, donate_argnums=0, out_shardings=out_shardings)
    args = jax.tree.leaves(state), *others
    function: Callable = flat
    folder = runtime.exported_dir()
    with _garbage_kept():
        # Of several processes, each would decide alone whether the file is there.
        alone = jax.process_count() == 1 and find_spec("flatbuffers")
        if identity is not None and folder is not None and alone:
            path = folder / f"{_digest(identity, structure, args)}.step"
            function = _read(path) or _export(jit(flat), args, path) or flat
        lowered = jit(function).lower(*args)
    return CompiledStep(lowered.compile(), structure)


@contextlib.contextmanager
def _garbage_kept() -> Iterator[None]:
    """Collect no cyclic garbage: that takes a tenth of the time of a trace."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read(path: Path) -> Callable | None:
    """Return the function of a file, None where there is no intact one."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, program = content[:32], content[32:]
    if hashlib.sha256(program).digest() != digest:
        return None
    return export.deserialize(bytearray(program)).call


def _export(jitted: Any, args: Any, path: Path) -> Callable | None:
    """Return a function as it will be read, and store it; None if JAX cannot export it.

    A folder that cannot be written costs the next start time, and nothing else.
    """
    try:
        exported = export.export(jitted)(*args)
        program = bytes(exported.serialize())
    except (NotImplementedError, ValueError):  # callbacks, types of one's own
        return None
    try:
        files.make_folder(path.parent)
        with files.atomic_write(path, overwrite=True) as temporary:
            temporary.write_bytes(hashlib.sha256(program).digest() + program)
        for old in sorted(path.parent.glob("*.step"), key=_age)[MAX_FILES:]:
            old.unlink(missing_ok=True)
    except (OSError, UserError):
        pass
    return exported.call


def _age(path: Path) -> float:
    return -path.stat().st_mtime


def _digest(identity: Any, structure: Any, args: Any) -> str:
    """Return a digest of all that decides a traced program."""
    device = jax.devices()[0]
    facts = {
        "identity": identity,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "settings": {
            n: str(runtime.jax_setting(n)) for n in runtime.PINNED_JAX_SETTINGS
        },
        "devices": [device.platform, device.device_kind, jax.device_count()],
        "processes": jax.process_count(),
        "structure": str((structure, jax.tree.structure(args))),
        "args": [
            [list(a.shape), str(a.dtype), str(getattr(a, "sharding", None))]
            for a in jax.tree.leaves(args)
        ],
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for path in _sources():
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def _sources() -> list[Path]:
    """Return the source files of this library and of what is no installed package."""
    paths = {*Path(vdm_jax.__file__).parent.rglob("*.py")}
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    installed = [Path(sysconfig.get_path(kind)).resolve() for kind in kinds]
    for module in [*sys.modules.values()]:
        file = getattr(module, "__file__", None)
        if file and file.endswith(".py"):
            path = Path(file).resolve()
            if not any(path.is_relative_to(folder) for folder in installed):
                paths.add(path)
    return sorted(paths)
