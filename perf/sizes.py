"""Parameters of the papers' configs and of what ships; how long its training took.

    python -m perf.sizes

Configs are counted from shapes alone. What ships is counted from its file; `minutes` is
the clock of its log from the first line to the last, without its gaps of more than five
minutes, in which a run stood still.
"""

import json
from pathlib import Path

import jax
import numpy as np

from configs import imagen_video, vdm
from vdm_jax import build, runs
from vdm_jax.training import checks

FILE = Path(__file__).with_suffix(".json")
COMMAND = "python -m perf.sizes"
ROOT = FILE.parents[1]
GAP = 300  # seconds


def of_config(module, variant: str) -> dict[str, float]:
    """Parameters of the network, and with what tells it its conditions."""
    config = module.get_config(variant).unlock()
    config.data.update(mean=0.0, variance=1.0)
    checks.check_config(config)
    shapes = jax.eval_shape(build.build_model(config).init_params, jax.random.key(0))
    return _counted(shapes)


def _counted(params) -> dict[str, float]:
    """Sizes of a tree by its first level."""
    of = {k: sum(x.size for x in jax.tree.leaves(v)) for k, v in params.items()}
    return {"network": of["network"], "all": sum(of.values())}


def shipped(folder: Path) -> dict[str, float]:
    """Parameters, bytes and minutes of a model that ships."""
    log = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in log]
    between = np.diff([row["time"] for row in rows])
    return _counted(runs.load(folder).params) | {
        "bytes": (folder / "params.safetensors").stat().st_size,
        "steps": rows[-1]["step"],
        "minutes": float(between[between < GAP].sum() / 60),
        "minutes of gaps": float(between[between >= GAP].sum() / 60),
    }


def main() -> None:
    """Count, print, write."""
    configs = {
        "vdm": {v: of_config(vdm, v) for v in vdm.VARIANTS[:-1]},
        "imagen_video": {v: of_config(imagen_video, v) for v in imagen_video.STAGES},
    }
    files = sorted(ROOT.glob("models/*/params.safetensors"))
    stages = sorted(ROOT.glob("cascades/*/*/params.safetensors"))
    found = {str(f.parent.relative_to(ROOT)): shipped(f.parent) for f in files + stages}
    for cascade in {f.parents[1] for f in stages}:
        name = str(cascade.relative_to(ROOT))
        of = [row for stage, row in found.items() if stage.startswith(f"{name}/")]
        found[name] = {key: sum(row[key] for row in of) for key in ("all", "bytes")}
    written = {"command": COMMAND, "configs": configs, "shipped": found}
    FILE.write_text(json.dumps(written, indent=1) + "\n")
    print(FILE.read_text())


if __name__ == "__main__":
    main()
