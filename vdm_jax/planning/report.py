"""The text of a plan: each figure, and how it was found."""

from collections.abc import Iterator

from vdm_jax.planning.plan import ASSUMED_UTILISATIONS, Plan
from vdm_jax.planning.topology import GIB

UNITS = {
    "train": "a training step",
    "sample": "a batch of videos",
    "distill": "a step of progressive distillation",
}


def format_plan(plan: Plan) -> str:
    """Return a plan as lines of text."""
    return "\n".join(_lines(plan))


def _lines(plan: Plan) -> Iterator[str]:
    chips = plan.topology.num_chips
    unit = UNITS[plan.work.kind]
    if plan.calls > 1:
        unit += f", {plan.calls} steps of the sampler"
    yield f"{plan.topology}: {chips} chip(s), mesh {_axes(plan.mesh)}"
    yield f"{plan.parameters / 1e6:,.1f} million parameters"
    yield f"global batch {plan.batch}, {plan.batch / chips:g} a chip"
    yield f"A chip, {unit}:"
    yield _row("state", _gib(plan.state_bytes), "exact, by the shardings")
    yield from _memory(plan)
    yield from _collectives(plan)
    if kernels := plan.compilation.kernels:
        most = sorted(kernels.items(), key=lambda pair: -pair[1])
        listed = ", ".join(f"{n} x {kind}" for kind, n in most)
        yield _row("kernels", f"{sum(kernels.values()):,}", f"a call: {listed}")
    flops = f"{plan.flops / 1e12:.3g} TFLOP"
    yield _row("FLOPs", flops, "of products and convolutions, nothing recomputed")
    yield from _times(plan)
    if len(plan.other_meshes) < 2:
        return
    yield "Other meshes, a chip; collectives are an estimate, as if each split"
    yield "parameter were gathered whole once and each gradient reduced once:"
    for mesh in plan.other_meshes:
        own = " (this one)" if mesh.axes == plan.mesh else ""
        moved = f"collectives {_gib(mesh.collective_bytes)}"
        yield f"  {_axes(mesh.axes):28} state {_gib(mesh.state_bytes)}, {moved}{own}"


def _times(plan: Plan) -> Iterator[str]:
    what = "videos" if plan.work.kind == "sample" else "clips of data"
    if (used := plan.utilisation) is None:
        rates = " / ".join(f"{plan.rate(each):.3g}" for each in ASSUMED_UTILISATIONS)
        assumed = " / ".join(f"{each:g}" for each in ASSUMED_UTILISATIONS)
        yield f"All chips, {what} a second: {rates}, if utilisation were {assumed}"
        estimated = "; --cycles estimates it" if plan.topology.is_tpu else ""
        yield (
            f"  utilisation is FLOPs over {plan.topology.chip.peak_flops / 1e12:g} "
            "TFLOP a second, assumed here" + estimated
        )
        return
    note = (
        "estimate: FLOPs of the pieces over those of the matrix units in their cycles"
    )
    yield _row("utilisation", f"{used:.2f}", note)
    note = "estimate: all FLOPs at that rate, links not waited for"
    yield _row("time", f"{plan.seconds(used):.3g} s", note)
    day = f"{86400 * plan.rate(used):,.0f} a day"
    yield f"All chips, {what}: {plan.rate(used):.3g} a second, {day}, at that rate"
    yield "Pieces, one chip, by the compiler's estimate; without what is between them:"
    unit = plan.topology.chip.flops_per_cycle
    for piece in plan.pieces:
        share = piece.flops / piece.cycles / unit if piece.cycles else 0.0
        calls = f"{piece.calls} x {piece.name}"
        yield f"  {calls:52} {piece.cycles / 1e6:8.2f} Mcycles, utilisation {share:.2f}"


def _memory(plan: Plan) -> Iterator[str]:
    fits = "fits" if plan.fits else "DOES NOT FIT"
    note = f"{fits} into {plan.topology.chip.memory / GIB:g} GiB, by the compiler"
    yield _row("memory", _gib(plan.memory_bytes), note)
    for name, size in plan.memories:
        yield _row(f"  {name}", _gib(size), "of this program, with all of the state")


def _collectives(plan: Plan) -> Iterator[str]:
    collectives = plan.collectives
    calls = f"in {collectives.total_calls:,} calls"
    yield _row("collectives", _gib(collectives.total_bytes), f"{calls}: their results")
    seconds = collectives.link_bytes / plan.topology.chip.link_bandwidth
    note = (
        f"all-reduce twice: {seconds * 1e3:.3g} ms at the "
        f"{plan.topology.chip.link_bandwidth / 1e9:g} GB/s of all links"
    )
    yield _row("on the links", _gib(collectives.link_bytes), note)
    for kind, one in collectives.by_kind().items():
        yield _row(f"  {kind}", _gib(one["bytes"]), f"in {one['calls']:,} calls")
    open_loops = collectives.open_loops - (plan.calls > 1)  # that of the sampler
    if open_loops > 0:
        yield f"  {open_loops} loop(s) of unknown length are counted as one trip"


def _row(name: str, value: str, note: str) -> str:
    return f"  {name:25} {value:>14}  {note}"


def _gib(size: float) -> str:
    return f"{size / GIB:.3g} GiB" if size >= GIB / 10 else f"{size / 2**20:.3g} MiB"


def _axes(axes: dict[str, int]) -> str:
    return " x ".join(f"{name}={n}" for name, n in axes.items()) or "of one chip"
