"""A folder of diffusers is tuned on pictures with captions, distilled, written back."""

import numpy as np
import pytest
from PIL import Image

from tests.parity.pipeline_cases import write_pipeline
from tests.run_command import call
from vdm_jax import adapters, runs
from vdm_jax.diffusion import schedules
from vdm_jax.text import __main__ as text_command
from vdm_jax.trees import named_leaves

pytestmark = pytest.mark.slow
CAPTIONS = "a red cat", "a dog", ""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return the folders of a pipeline, of pictures and of their captions' tokens."""
    root = tmp_path_factory.mktemp("finetune")
    write_pipeline(root / "sd")
    pictures = root / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{i}.png")
        (pictures / f"{i}.txt").write_text(CAPTIONS[i % 3])
    flags = f"--captions={pictures}", f"--text_encoder={root / 'sd' / 'text_encoder'}"
    text_command.main([*flags, f"--out={root / 'text'}"])
    return root


def data_flags(root):
    return (
        f"--config.data.path={root / 'pictures'}",
        f"--config.data.text_embeddings_dir={root / 'text'}",
    )


def test_it_is_tuned_sampled_and_written_back(folders):
    workdir, out = folders / "run", folders / "out"
    done = call(
        "train", "--config=configs/finetune_image.py:smoke",
        f"--config.init_from={folders / 'sd'}", *data_flags(folders),
        "--config.conditioning.text_dropout=0.3", f"--workdir={workdir}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    config, base = runs.read_config(workdir), runs.read_config(folders / "sd")
    for section in ("video", "codec", "network", "diffusion", "discrete"):
        stored = [part[section].to_json(sort_keys=True) for part in (config, base)]
        assert stored[0] == stored[1]  # where tuples are lists
    assert config.conditioning.text_dropout == 0.3
    assert not config.conditioning.text_pooling
    before = named_leaves(runs.load(folders / "sd").params)
    after = named_leaves(runs.load(workdir).params)
    moved = [n for n, leaf in after.items() if (leaf != before[n]).any()]
    assert len(moved) > len(after) / 3
    assert not any(name.startswith("codec/") for name in moved)
    flags = f"--workdir={workdir}", "--prompt=a cat", "--steps=2", f"--out={out}"
    done = call("sample", *flags)
    assert done.returncode == 0, done.stderr
    assert (out / "samples-000.png").is_file()
    written = folders / "written"
    done = call(
        "export", f"--workdir={workdir}", f"--out={written}", "--format=diffusers"
    )
    assert done.returncode == 0, done.stderr
    for name, leaf in named_leaves(runs.load(written).params).items():
        np.testing.assert_allclose(leaf, np.float16(after[name]), atol=1e-7)


def test_it_is_tuned_by_a_lora(folders):
    """It is read as a file, and merged in a folder of diffusers."""
    workdir, base = folders / "lora_run", folders / "sd"
    done = call(
        "train", "--config=configs/finetune_image.py:lora_smoke",
        f"--config.init_from={base}", *data_flags(folders), f"--workdir={workdir}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, after = (named_leaves(runs.load(f).params) for f in (base, workdir))
    for name, leaf in before.items():
        np.testing.assert_array_equal(after[name], leaf)
    new = after.keys() - before.keys()
    assert new and all("_attention/" in name and "/lora_" in name for name in new)
    for kind in ("lora", "diffusers"):
        flags = f"--workdir={workdir}", f"--out={folders / kind}", f"--format={kind}"
        done = call("export", *flags)
        assert done.returncode == 0, done.stderr
    tuned = adapters.apply(runs.load(base), [(folders / "lora", 1.0)])
    written = named_leaves(runs.load(folders / "diffusers").params)
    for name, leaf in named_leaves(tuned.params).items():
        np.testing.assert_allclose(
            written[name], np.float16(leaf), rtol=2e-3, atol=1e-6
        )


def test_it_is_a_teacher(folders):
    """Of a student with guidance, on timesteps that halve, from captions."""
    workdir = folders / "distilled"
    done = call(
        "distill", "--config=configs/distill_shapes.py:smoke",
        f"--teacher={folders / 'sd'}", *data_flags(folders), f"--workdir={workdir}",
        "--config.distill.metric=r2_to_teacher", "--config.distill.end_steps=2",
        "--config.distill.loss_weighting=snr", "--config.train.optimizer=adam",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    student = runs.load(workdir)
    schedule = student.model.schedule
    assert isinstance(schedule, schedules.Discrete)
    assert schedule.timesteps(2).tolist() == [999, 499]
    assert student.model.guidance_range == (1.0, 3.0)
    out = folders / "student"
    done = call("sample", f"--workdir={workdir}", "--prompt=a cat", f"--out={out}")
    assert done.returncode == 0, done.stderr
