"""Plans of the papers' models, Stable Diffusion 1.5 and Wan 2.1, for tables of docs.

    pip install -r requirements-plan.txt && python -m perf.scaling [--only=NAME,...]

Each case is a run of plan.py, in a process of its own. Published models are folders of
diffusers with their files config.json and no weights. Cases of an H100 run where
jax[cuda13] is installed, the others where libtpu is. Writes perf/scaling.json, of which
the cases that did not run stay.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from configs import imagen_video
from perf import rows
from tests.parity.recorded import real_network
from tests.parity.sd_cases import PUBLISHED
from vdm_jax import files
from vdm_jax.errors import UserError
from vdm_jax.planning import topology

FILE = Path(__file__).with_suffix(".json")
COMMAND = "python -m perf.scaling"
ROOT = FILE.parents[1]
UCF101 = "--config=configs/vdm.py:ucf101"
SD = "--workdir=stable-diffusion-v1-5", "--work=sample"
WAN = "--workdir=Wan2.1-T2V-1.3B"
CONTROL_VIDEO = *SD, "--system=control_video", "--num_frames=15"
SSR3 = "--config=configs/imagen_video.py:ssr3"
SSR3_SAMPLED = SSR3, "--work=sample", "--batch_per_chip=0.0625"  # 16 chips a video
# Name -> flags of plan.py.
CASES: dict[str, tuple[str, ...]] = {
    "ucf101 on 16": (UCF101, "--topology=v5e:4x4", "--mesh=fsdp=16"),
    "ucf101 on 256": (UCF101, "--topology=v5e:16x16", "--mesh=fsdp=256"),
    "ucf101 on 512": (UCF101, "--topology=v5p:8x8x8", "--mesh=fsdp=512"),
    "ucf101 on 32": (UCF101, "--topology=v5e:4x4", "--mesh=slice=2,fsdp=16"),
    **{
        f"imagen_video {stage}": (
            f"--config=configs/imagen_video.py:{stage}",
            "--topology=v5e:16x16",
            "--mesh=fsdp=256",
        )
        for stage in imagen_video.STAGES
    },
    "sd15": (*SD, "--topology=v5e:1x1"),
    "sd15 batch 8": (*SD, "--topology=v5e:1x1", "--batch_per_chip=8"),
    "control_video": (*CONTROL_VIDEO, "--topology=v5e:1x1"),
    **{
        f"wan 1.3b {what} on {topology[:3]}": (
            WAN,
            f"--work={work}",
            f"--topology={topology}",
            f"--mesh={mesh}",
        )
        for what, work, mesh in (
            ("sampled", "sample", "data=16"),
            ("distilled", "distill", "fsdp=16"),
        )
        for topology in ("v5e:4x4", "v5p:2x2x4")
    },
    "imagen_video ssr3 sampled": (
        *SSR3_SAMPLED,
        "--topology=v5e:4x4",
        "--mesh=context=16",
    ),
    "imagen_video ssr3 sampled unguided": (
        *SSR3_SAMPLED,
        "--topology=v5e:4x4",
        "--mesh=context=16",
        "--config.sample.guidance_scale=1",
    ),
    "imagen_video ssr3 sampled on 256": (
        *SSR3_SAMPLED,
        "--topology=v5e:16x16",
        "--mesh=data=16,context=16",
    ),
    "ucf101 distilled on 16": (
        UCF101,
        "--work=distill",
        "--topology=v5e:4x4",
        "--mesh=fsdp=16",
    ),
    "ucf101 on h100": (UCF101, "--topology=h100:8", "--mesh=fsdp=8"),
    "sd15 on h100": (*SD, "--topology=h100:1"),
    "sd15 batch 8 on h100": (*SD, "--topology=h100:1", "--batch_per_chip=8"),
    "control_video on h100": (*CONTROL_VIDEO, "--topology=h100:1"),
}
FIGURES = {  # key -> (name, divisor)
    "state_bytes": ("state, GiB a chip", 2**30),
    "memory_bytes": ("memory, GiB a chip", 2**30),
    "collective_bytes": ("collectives, GiB a chip", 2**30),
    "collective_calls": ("calls of collectives", 1),
    "flops": ("TFLOP a chip", 1e12),
}
TARGETS = {  # (case, key) -> what was aimed at, in the unit of FIGURES
    ("ucf101 on 16", "collective_bytes"): 5.0,
    ("ucf101 on 16", "collective_calls"): 250.0,
    ("imagen_video ssr3 sampled unguided", "memory_bytes"): 12.0,
}


# Name of a folder -> class of its pipeline, and class and fields of each part.
FOLDERS: dict[str, tuple[str, dict[str, tuple[str, dict[str, Any]]]]] = {
    "stable-diffusion-v1-5": (
        "StableDiffusionPipeline",
        {
            "unet": ("UNet2DConditionModel", PUBLISHED["sd15_unet"]),
            "vae": (
                "AutoencoderKL",
                dict(
                    block_out_channels=(128, 256, 512, 512), layers_per_block=2,
                    down_block_types=("DownEncoderBlock2D",) * 4,
                    up_block_types=("UpDecoderBlock2D",) * 4, sample_size=512,
                    latent_channels=4, scaling_factor=0.18215,
                ),
            ),
            "scheduler": (
                "PNDMScheduler",
                dict(
                    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                    steps_offset=1, skip_prk_steps=True, num_train_timesteps=1000,
                ),
            ),
            "text_encoder": ("CLIPTextModel", {}),
            "tokenizer": ("CLIPTokenizer", {}),
        },
    ),
    "Wan2.1-T2V-1.3B": (
        "WanPipeline",
        {
            "transformer": (
                "WanTransformer3DModel",
                real_network("wan21_t2v_1_3b_transformer")["config"],
            ),
            "vae": ("AutoencoderKLWan", real_network("wan21_vae")["config"]),
            "scheduler": (
                "UniPCMultistepScheduler",
                dict(
                    prediction_type="flow_prediction", use_flow_sigmas=True,
                    flow_shift=3.0, num_train_timesteps=1000,
                ),
            ),
            "text_encoder": ("UMT5EncoderModel", {}),
            "tokenizer": ("T5Tokenizer", {}),
        },
    ),
}  # fmt: skip


def write_folders(root: Path) -> None:
    """Write the folders of FOLDERS, without weights."""
    for folder, (pipeline, parts) in FOLDERS.items():
        index: dict[str, Any] = {"_class_name": pipeline}
        for name, (kind, fields) in parts.items():
            is_text = name in ("text_encoder", "tokenizer")
            index[name] = ["transformers" if is_text else "diffusers", kind]
            file = "scheduler_config.json" if name == "scheduler" else "config.json"
            (root / folder / name).mkdir(parents=True)
            files.write_json(
                root / folder / name / file, {"_class_name": kind} | fields
            )
        files.write_json(root / folder / "model_index.json", index)


def can_run(name: str) -> bool:
    """Return whether the compiler of a case is installed here."""
    text = next(flag for flag in CASES[name] if flag.startswith("--topology="))
    try:
        topology.check_compiler(topology.Topology.parse(text.partition("=")[2]))
    except UserError:
        return False
    return True


def run(flags: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """Return the figures of a run of plan.py, and its seconds."""
    out = folder / "plan.json"
    command = [sys.executable, str(ROOT / "plan.py"), *flags, f"--json={out}"]
    started = time.perf_counter()
    subprocess.run(command, check=True, cwd=folder)
    seconds = time.perf_counter() - started
    return json.loads(out.read_text()) | {"flags": flags, "seconds": seconds}


def make_rows(cases: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of perf/: the figures of each case that were computed."""
    return [
        rows.make_row(
            f"{what}, {name}",
            case[key] / divisor,
            target=TARGETS.get((name, key)),
            better="lower",
            machine=f"{case['topology']}, compiled only",
            command=COMMAND,
        )
        for name, case in cases.items()
        for key, (what, divisor) in FIGURES.items()
        if case[key] is not None
    ]


def table(cases: dict[str, dict[str, Any]]) -> str:
    """Return the cases as the table of docs/scaling.md."""
    head = ["", "chips", "mesh", "batch", "state", "memory", "collectives", "calls"]
    lines = [[*head, "FLOPs"], ["---"] * (len(head) + 1)]
    for name, case in cases.items():
        mesh = ",".join(f"{axis}={n}" for axis, n in case["mesh"].items())
        state, memory, moved = (
            f"{case[key] / 2**30:.2f} GiB" if case[key] else ""
            for key in ("state_bytes", "memory_bytes", "collective_bytes")
        )
        if case["fits"] is False:
            memory += ", too much"
        calls, flops = case["collective_calls"], case["flops"]
        numbers = f"{calls:,}", f"{flops / 1e12:.1f} TFLOP"
        batch = f"{case['batch']:,}"
        lines.append(
            [name, case["topology"], mesh, batch, state, memory, moved, *numbers]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Plan, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(filter(can_run, CASES)))
    cases = json.loads(FILE.read_text())["cases"] if FILE.is_file() else {}
    for name in parser.parse_args().only.split(","):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_folders(folder)
            (folder / "configs").symlink_to(ROOT / "configs")
            cases[name] = run(CASES[name], folder)
        cases = {name: cases[name] for name in CASES if name in cases}
        rows.write(FILE, make_rows(cases), cases=cases)
    print(table(cases))


if __name__ == "__main__":
    main()
