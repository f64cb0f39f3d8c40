"""A folder of Wan is distilled as any teacher is, and its student samples."""

from typing import Any

import numpy as np
import pytest

from configs import distill_shapes
from tests.data.folders import make_mp4
from tests.parity.wan_pipeline_cases import write_pipeline
from vdm_jax import cascade, diffusers_folder, runs
from vdm_jax.diffusion import process, samplers
from vdm_jax.distillation import driver
from vdm_jax.text import __main__ as text_command

pytestmark = pytest.mark.slow
SIZE = {"frames": 5, "height": 16, "width": 32}


def test_a_folder_of_wan_is_a_teacher(tmp_path, monkeypatch):
    """With guidance, then from 4 to 2 steps of flow's shifted time, from captions."""
    wan_video = diffusers_folder.WAN_VIDEO | SIZE
    monkeypatch.setattr(diffusers_folder, "WAN_VIDEO", wan_video)
    teacher, clips = write_pipeline(tmp_path / "wan"), tmp_path / "clips"
    for i, caption in enumerate(("a red cat", "a dog") * 6):
        make_mp4(clips / f"{i}.mp4", i, fps=16)
        (clips / f"{i}.txt").write_text(caption)
    flags = f"--captions={clips}", f"--text_encoder={teacher / 'text_encoder'}"
    text_command.main([*flags, f"--out={tmp_path / 'text'}"])
    config: Any = distill_shapes.get_config("smoke").unlock()
    config.distill.update(end_steps=2, metric="r2_to_teacher", loss_weighting="flow")
    config.data.update(path=str(clips), text_embeddings_dir=str(tmp_path / "text"))
    config.train.optimizer = "adam"
    rows = driver.distill(config.lock(), str(teacher), tmp_path / "student")
    assert [row["steps"] for row in rows] == [4, 2]
    assert all(np.isfinite(row["loss"]) for row in rows)
    student = runs.load(tmp_path / "student")
    assert student.model.guidance_range == (1.0, 3.0)
    tau = process.flow_time(samplers.grid(student.model.schedule, 2)[0])
    np.testing.assert_allclose(tau, [1, 0.75], atol=1e-5)
    read = cascade.read_model(tmp_path / "student")
    cond, _ = cascade.encode_conditions(read, 1, prompts=["a red cat"])
    (videos,) = cascade.sample(read, 1, cond).values()
    assert videos.shape == (1, *SIZE.values(), 3) and np.isfinite(videos).all()
