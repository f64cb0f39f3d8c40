"""The files of docs/launch: they parse, run, and restart on the documented statuses."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.run_command import ROOT, SMOKE
from vdm_jax.runtime import INTERRUPTED, RESTART
from vdm_jax.training.launch import PEER_DIED

FOLDER = ROOT / "docs" / "launch"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
TEXT = (ROOT / "docs" / "reliability.md").read_text("utf-8")
FATAL = (0, 1, 2, 3, 4, 5, INTERRUPTED)
SMALL = [
    "--config.mesh.fsdp=1", "--config.data.batch_size=2", "--config.train.steps=1",
    "--config.train.eval_every=0", "--config.sample.steps=1",
]  # fmt: skip


def documented() -> set[int]:
    """The statuses after which docs/reliability.md restarts."""
    [sentence] = re.findall(r"^Restart after the statuses ([\d, and\n]+)\.", TEXT, re.M)
    return {int(status) for status in re.findall(r"\d+", sentence)}


def jobset() -> dict:
    return yaml.safe_load((FOLDER / "jobset.yaml").read_text())


def worker() -> dict:
    [job] = jobset()["spec"]["replicatedJobs"]
    return job["template"]["spec"]


def test_the_documented_statuses_are_those_of_the_code():
    assert {RESTART, PEER_DIED} <= documented() and not documented() & {*FATAL}


@pytest.mark.parametrize("name", ["until_done.sh", "slurm.sh"])
def test_scripts_restart_on_the_documented_statuses(name):
    [cases] = re.findall(r"^ +(\d+(?: \| \d+)+)\)", (FOLDER / name).read_text(), re.M)
    assert {int(status) for status in cases.split(" | ")} == documented()


def test_the_jobset_restarts_on_the_documented_statuses_and_on_no_other():
    [rule] = worker()["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    codes = rule["onExitCodes"]
    assert codes["operator"] == "NotIn" and {*codes["values"]} == documented()
    [other] = jobset()["spec"]["failurePolicy"]["rules"]
    assert other == {
        "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]
    }  # fmt: skip
    [container] = worker()["template"]["spec"]["containers"]
    assert container["name"] == codes["containerName"]
    # A policy needs pods that are never restarted in place, and a Job no second try.
    assert worker()["template"]["spec"]["restartPolicy"] == "Never"
    assert worker()["backoffLimit"] == 0


def test_each_job_of_the_jobset_is_a_node_pool():
    """Which is a slice; two jobs in one node pool would share it."""
    [(name, key)] = jobset()["metadata"]["annotations"].items()
    assert name == "alpha.jobset.sigs.k8s.io/exclusive-topology"
    assert key == "cloud.google.com/gke-nodepool"


def test_the_probe_is_of_the_heartbeat_that_the_command_writes(tmp_path):
    [container] = worker()["template"]["spec"]["containers"]
    [path] = [
        arg.partition("=")[2]
        for arg in container["args"]
        if arg.startswith("--heartbeat=")
    ]
    *shell, line = container["livenessProbe"]["exec"]["command"]
    assert path in line
    own = tmp_path / "heartbeat.json"
    probe = [*shell, line.replace(path, str(own))]
    assert subprocess.run(probe, capture_output=True).returncode == 0  # not there yet
    for minutes, status in ((1, 0), (29, 0), (32, 1)):
        own.touch()
        os.utime(own, (time.time(), time.time() - 60 * minutes))
        assert subprocess.run(probe).returncode == status


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path):
    found = shutil.which("shellcheck") or shutil.which(
        "shellcheck", path=Path(sys.executable).parent
    )
    if found is None:
        pytest.skip("shellcheck is not installed (requirements-dev.txt)")
    done = subprocess.run([found, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def until_done(tmp_path, *statuses: int, **environment) -> tuple[int, int]:
    """Exit status and number of starts of a command with these statuses in turn."""
    log = tmp_path / f"starts-{'-'.join(map(str, statuses))}"
    code = (
        "import sys; log, *statuses = sys.argv[1:]; open(log, 'a').write('x');"
        "sys.exit(int(statuses[min(len(open(log).read()), len(statuses)) - 1]))"
    )
    command = [sys.executable, "-S", "-c", code, str(log), *map(str, statuses)]
    done = subprocess.run(
        [FOLDER / "until_done.sh", *command],
        env={**os.environ, "RESTART_DELAY": "0", **environment},
        capture_output=True,
    )
    return done.returncode, len(log.read_text())


def test_a_command_is_started_again_on_the_documented_statuses_only(tmp_path):
    every = sorted(documented())
    assert until_done(tmp_path, *every, 0) == (0, len(every) + 1)
    for status in FATAL:
        assert until_done(tmp_path, status) == (status, 1)
    assert until_done(tmp_path, 42, MAX_RESTARTS="2") == (42, 3)


def test_a_sigterm_is_passed_on_and_ends_the_restarts(tmp_path):
    code = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(42));"
        "print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [FOLDER / "until_done.sh", sys.executable, "-c", code],
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.wait(30) == 42
        assert process.stdout.read() == ""  # no second start


def test_a_sigterm_during_the_delay_ends_the_restarts(tmp_path):
    log = tmp_path / "starts"
    with subprocess.Popen(
        [FOLDER / "until_done.sh", "bash", "-c", f"echo >> {log}; exit 42"],
        env={**os.environ, "RESTART_DELAY": "5", "MAX_RESTARTS": "1"},
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        assert process.stderr.readline() == "status 42: starting again\n"
        time.sleep(0.5)  # in the delay
        process.terminate()
        assert process.wait(30) == 42
    assert log.read_text() == "\n"  # one start


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """One run for all files: the first that is tested trains it, the others resume."""
    return tmp_path_factory.mktemp("run") / "run"


def run_file(
    command, tmp_path, workdir, **programs: str
) -> subprocess.CompletedProcess:
    """Run a file with the smoke config; programs: scripts that stand in for others."""
    for name, script in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "vdm_jax").symlink_to(ROOT)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": sys.executable,
        "CONFIG": SMOKE.partition("=")[2], "WORKDIR": str(workdir), "DATA": "",
        "TMPDIR": str(tmp_path), "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu",
        "VDM_NUM_PROCESSES": "1", "SLURM_JOB_ID": "7", "RESTART_DELAY": "0",
    }  # fmt: skip
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=500,
    )  # fmt: skip


def check_trained(output: str, workdir: Path) -> None:
    assert (workdir / "checkpoints" / "1" / "manifest.json").is_file(), output
    assert "step 1/1" in output or "nothing to train: step 1 of 1" in output


def test_one_host(tmp_path, workdir):
    done = run_file([FOLDER / "one_host.sh", *SMALL], tmp_path, workdir)
    assert done.returncode == 0, done.stdout
    check_trained(done.stdout, workdir)
    assert (tmp_path / "vdm_heartbeat.json").is_file()


SRUN = 'while [[ $1 == --* ]]; do shift; done; exec "$@"'


def test_slurm(tmp_path, workdir):
    command = ["bash", FOLDER / "slurm.sh", *SMALL]
    done = run_file(command, tmp_path, workdir, srun=SRUN, scontrol="exit 1")
    assert done.returncode == 0, done.stdout
    check_trained(done.stdout, workdir)


def test_slurm_requeues_on_the_documented_statuses_only(tmp_path, workdir):
    for status in (*FATAL[1:], *documented()):
        folder = tmp_path / str(status)
        folder.mkdir()
        scontrol = f'echo "$@" > {folder}/requeued'
        command = ["bash", FOLDER / "slurm.sh"]
        programs = {"srun": f"exit {status}", "scontrol": scontrol}
        assert run_file(command, folder, workdir, **programs).returncode == status
        requeued = folder / "requeued"
        text = requeued.read_text() if requeued.exists() else ""
        assert text == ("requeue 7\n" if status in documented() else "")


@pytest.mark.parametrize(
    ("statuses", "restarts", "requeued", "status"),
    [
        ((2, 42), 0, False, 2), ((134, 1), 0, False, 1), ((42, 134), 0, True, 134),
        ((42, 42), 3, False, 42),
    ],
)  # fmt: skip
def test_slurm_stops_if_one_task_is_final_or_after_max_restarts(
    tmp_path, monkeypatch, statuses, restarts, requeued, status
):
    """srun prints each task's status, and returns the largest."""
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
    monkeypatch.setenv("MAX_RESTARTS", "3")
    lines = [
        f'echo "srun: error: node{i}: task {i}: Exited with exit code {each}" >&2'
        for i, each in enumerate(statuses)
    ]
    srun = "\n".join(["echo training", *lines, f"exit {max(statuses)}"])
    command = ["bash", FOLDER / "slurm.sh"]
    scontrol = f"touch {tmp_path}/requeued"
    done = run_file(command, tmp_path, tmp_path, srun=srun, scontrol=scontrol)
    assert done.returncode == status
    assert (tmp_path / "requeued").exists() == requeued
    assert "training\nsrun: error" in done.stdout


def test_tpu_vm(tmp_path, workdir):
    gcloud = (
        'for last; do :; done; echo "$@" > "$HOME/called"; [[ $last == --command=* ]]'
        ' && bash -c "${last#--command=}"'
    )
    command = ["bash", FOLDER / "tpu_vm.sh", "slice", "zone", *SMALL]
    done = run_file(command, tmp_path, workdir, gcloud=gcloud)
    assert done.returncode == 0, done.stdout
    called = (tmp_path / "called").read_text()
    assert "tpu-vm ssh slice --zone=zone --worker=all" in called
    log = tmp_path / "vdm_jax.log"
    words = "step 1/1|nothing to train|rror"
    for _ in range(1000):  # it runs on in the background
        if log.exists() and re.search(words, log.read_text()):
            break
        time.sleep(0.2)
    check_trained(log.read_text(), workdir)


def test_jobset(tmp_path, workdir):
    [container] = worker()["template"]["spec"]["containers"]
    small = {
        "--config": SMOKE, "--workdir": f"--workdir={workdir}",
        "--config.data.path": "--config.data.path=",
        "--heartbeat": f"--heartbeat={tmp_path}/heartbeat.json",
    }  # fmt: skip
    args = [small.pop(arg.partition("=")[0], arg) for arg in container["args"]]
    assert not small
    command = [sys.executable, *container["command"][1:], *args, *SMALL]
    done = run_file(command, tmp_path, workdir)
    assert done.returncode == 0, done.stdout
    check_trained(done.stdout, workdir)
    assert (tmp_path / "heartbeat.json").is_file()
