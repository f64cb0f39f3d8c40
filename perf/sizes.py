"""Parameters of the papers' configs and of shipped models; minutes of their training.

    python -m perf.sizes

Configs are counted from shapes alone, shipped models from their files. `minutes` is the
time of the log from the first line to the last, without gaps of more than five minutes,
in which the run was interrupted. Writes perf/sizes.json.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs import imagen_video, vdm
from perf import rows
from vdm_jax import build, image_text, runs, settings
from vdm_jax.pretrained import safetensors_io

FILE = Path(__file__).with_suffix(".json")
COMMAND = "python -m perf.sizes"
ROOT = FILE.parents[1]
GAP = 300  # seconds
DIFFUSERS = "diffusion_pytorch_model.safetensors"  # of an autoencoder, a ControlNet
MACHINE = "any: counted from shapes and files"


def of_config(module, variant: str) -> dict[str, float]:
    """Return the parameters of the network, and with the conditioning encoder."""
    config = module.get_config(variant).unlock()
    config.data.update(mean=0.0, variance=1.0)
    settings.check_config(config, settings.TRAINING)
    shapes = jax.eval_shape(build.build_model(config).init_params, jax.random.key(0))
    return _counted(shapes)


def _counted(params) -> dict[str, float]:
    """Return parameters of the network and of the whole tree."""
    sizes = {k: sum(x.size for x in jax.tree.leaves(v)) for k, v in params.items()}
    return {"network": sizes["network"], "all": sum(sizes.values())}


def shipped(folder: Path) -> dict[str, float]:
    """Return parameters, bytes, steps and minutes of a shipped model."""
    log = (folder / "metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in log]
    between = np.diff([entry["time"] for entry in entries])
    if (file := folder / DIFFUSERS).is_file():
        count = safetensors_io.count((file,))
        counted: dict[str, float] = {"network": count, "all": count}
    else:
        file = folder / "params.safetensors"
        if runs.read_config(folder).task == "contrastive":
            params = {"network": image_text.load(folder).params}
        else:
            params = runs.load(folder).params
        counted = _counted({k: v for k, v in params.items() if k != "codec"})
    return counted | {
        "bytes": file.stat().st_size,
        "steps": entries[-1]["step"],
        "minutes": float(between[between < GAP].sum() / 60),
        "minutes of gaps": float(between[between >= GAP].sum() / 60),
    }


def make_rows(configs: dict[str, dict], shipped: dict[str, dict]) -> list[dict]:
    """Return rows of perf/: parameters of configs and of shipped models."""
    about: dict[str, Any] = {"better": "lower", "machine": MACHINE, "command": COMMAND}
    sizes = {
        f"configs/{module}.py:{variant}": size["all"]
        for module, variants in configs.items()
        for variant, size in variants.items()
    }
    sizes |= {name: size["all"] for name, size in shipped.items()}
    return [rows.make_row(f"parameters, {k}", n, **about) for k, n in sizes.items()]


def main() -> None:
    """Count, print, write."""
    configs = {
        "vdm": {v: of_config(vdm, v) for v in vdm.VARIANTS[:-1]},
        "imagen_video": {v: of_config(imagen_video, v) for v in imagen_video.STAGES},
    }
    files = sorted(ROOT.glob("models/*/params.safetensors"))
    files += sorted(ROOT.glob(f"models/*/{DIFFUSERS}"))
    stages = sorted(ROOT.glob("cascades/*/*/params.safetensors"))
    sizes = {str(f.parent.relative_to(ROOT)): shipped(f.parent) for f in files + stages}
    for cascade in {f.parents[1] for f in stages}:
        name = str(cascade.relative_to(ROOT))
        parts = [size for k, size in sizes.items() if k.startswith(f"{name}/")]
        sizes[name] = {key: sum(p[key] for p in parts) for key in ("all", "bytes")}
    rows.write(FILE, make_rows(configs, sizes), configs=configs, shipped=sizes)
    print(FILE.read_text())


if __name__ == "__main__":
    main()
