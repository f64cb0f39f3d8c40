"""python -m vdm_jax.export: a run as a shipped model."""

from tests.run_command import call, refused


def test_export_ships_a_model_that_samples(run, tmp_path):
    out = tmp_path / "shipped"
    done = call("export", f"--workdir={run}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    done = call("sample", f"--workdir={out}", f"--out={tmp_path}/s", "--num=1")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in out.iterdir()} == {
        "params.safetensors", "config.json", "metrics.jsonl",
    }  # fmt: skip
    assert "--overwrite" in refused("export", f"--workdir={run}", f"--out={out}")
    itself = f"--out={run}", "--overwrite"
    assert "is a run" in refused("export", f"--workdir={run}", *itself)
    assert (
        call("export", f"--workdir={run}", f"--out={out}", "--overwrite").returncode
        == 0
    )
