"""Faults of object stores, by a server on this machine (moto)."""

import shutil
from pathlib import Path

from reliability.harness import Skipped, Wrong, expect, fault, run, smoke

STEPS = "--config.train.steps=8"
ADDRESS = "s3://bucket/run"


def server(folder: Path):
    """Return a context of a server, its proxy and the environment; or skip."""
    try:
        from reliability.object_stores import served
    except ImportError as error:
        raise Skipped(f"pip install -r requirements-dev.txt ({error.name})") from error
    return served(folder)


def train(environment: dict, *fields: str):
    """Train the smallest run in the bucket."""
    address = f"--workdir={ADDRESS}"
    command = [w for w in smoke(Path("."), *fields) if not w.startswith("--workdir")]
    return run(*command, address, env=environment)


@fault
def store_fails(folder: Path) -> str:
    """An object store answers half of the writes with status 503."""
    with server(folder) as (proxy, environment):
        proxy.fail_half_of_the_writes()
        every = "--config.train.checkpoint_every=2"
        expect(train(environment, every, "--config.train.steps=4"), 0)
        expect(train(environment, every, STEPS), 0, "resuming from step 4")
        if proxy.failed < 20:
            raise Wrong(f"only {proxy.failed} writes failed")
        sampled = [f"--workdir={ADDRESS}", "--num=1", f"--out={folder / 'out'}"]
        answer = expect(run("sample.py", *sampled, env=environment), 0)
        return f"{proxy.failed} writes failed; {answer}"


@fault
def store_refuses(folder: Path) -> str:
    """A store refuses to be written; later the run resumes on another machine."""
    with server(folder) as (proxy, environment):
        expect(train(environment, "--config.train.steps=4"), 0)
        proxy.fails, proxy.status = lambda method, _: method != "GET", 403
        done = train(environment, "--config.train.checkpoint_every=8", STEPS)
        answer = expect(done, 2, "403", "s3://bucket/run")
        proxy.fails = lambda method, _: False
        shutil.rmtree(environment["XDG_CACHE_HOME"])
        expect(train(environment, STEPS), 0, "resuming from step 4")
        return answer
