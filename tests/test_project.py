"""Files about the project: they agree with the Makefile, and name what exists."""

import re
import tomllib

import yaml

from tests.run_command import ROOT


def read(name: str) -> str:
    return (ROOT / name).read_text()


def ci_commands() -> list[str]:
    return re.findall(r"^make .*", read(".ci/run"), re.MULTILINE)


def test_the_workflow_and_the_hooks_have_no_checks_of_their_own():
    jobs = yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    repos = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    assert [hook["entry"] for repo in repos for hook in repo["hooks"]] == ci_commands()
    assert ci_commands() == ["make lint", "make test"]


def test_the_workflow_runs_the_pythons_of_the_package():
    (job,) = yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"].values()
    python = job["strategy"]["matrix"]["python"]
    required = tomllib.loads(read("pyproject.toml"))["project"]["requires-python"]
    first, end = (int(minor) for minor in re.findall(r"3\.(\d+)", required))
    assert python == [f"3.{minor}" for minor in range(first, end)]


def test_the_citation_has_the_version_and_the_papers():
    citation = yaml.safe_load(read("CITATION.cff"))
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    urls = [each["url"] for each in citation["references"]]
    assert len(urls) == len({*urls})
    papers = {"2204.03458", "2210.02303", "2202.00512", "2210.03142", "2206.00364"}
    assert papers <= {url.removeprefix("https://arxiv.org/abs/") for url in urls}
    for each in citation["references"]:
        assert each["title"] and each["authors"] and each["year"]


def test_what_the_guide_names_exists():
    text = read("CONTRIBUTING.md")
    paths = re.findall(r"`((?:vdm_jax|tests|configs|reliability|\.)[\w./-]*)`", text)
    paths += re.findall(r"\]\(([\w./-]+)\)", text)
    paths = [path for path in paths if "/" in path]
    assert len(paths) > 20 and all((ROOT / path).exists() for path in paths)
    targets = set(re.findall(r"^([\w-]+):", read("Makefile"), re.MULTILINE))
    assert {*re.findall(r"make ([a-z-]+)", text)} <= targets
