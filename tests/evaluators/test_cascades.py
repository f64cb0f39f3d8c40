"""Evaluation of cascades and of models that are conditioned on text."""

import json

import jax
import numpy as np
import pytest

from configs import shapes
from tests.metrics.cheap_networks import CheapNetworks
from tests.metrics.test_frechet import eigenvalue_distance
from tests.run_command import ROOT, call, refused
from tests.test_cascade import folder  # noqa: F401
from vdm_jax import build, cascade, data, runs
from vdm_jax.data import pipeline
from vdm_jax.evaluators import cascades, clips, models
from vdm_jax.evaluators.reports import ReportOptions
from vdm_jax.metrics import pixel_statistics, reference_sets

NUM = 12


@pytest.fixture
def prompts(monkeypatch):
    """The prompts that were embedded, without an encoder."""
    seen = []

    def encode(cascade, prompts):
        seen.extend(prompts)
        dim = cascade.stages[0].model.text_dim
        mask = np.ones((len(prompts), 3), bool)
        return {"text": np.ones((len(prompts), 3, dim), "f4"), "text_mask": mask}, None

    monkeypatch.setattr(clips.cascades, "encode_prompts", encode)
    monkeypatch.setattr(clips, "TRAINING_CLIPS", 60)
    return seen


def held_out(stage):
    config = stage.config
    return pipeline.held_out_batch(config, data.open_source(config), NUM)


def test_rows_of_every_stage_are_those_of_its_videos(prompts, monkeypatch, tmp_path):
    """Videos are held-out clips; the first three are reversed at the second stage."""
    two = cascade.read(ROOT / "cascades" / "shapes").truncate("tsr1")
    real = {stage.name: held_out(stage) for stage in two.stages}
    videos = {name: batch["video"].copy() for name, batch in real.items()}
    videos["tsr1"][:3] = videos["tsr1"][:3, ::-1]
    seen = []

    def sample(cascade, num, cond, seed):
        seen.append((num, {*cond}, seed))
        return videos

    monkeypatch.setattr(cascades, "sample", sample)
    results = cascades.evaluate(
        two, ReportOptions(tmp_path), num=NUM, seed=3, networks=CheapNetworks()
    )
    assert seen == [(NUM, {"text", "text_mask"}, 3)]
    assert prompts == real["base"]["caption"].tolist()
    names = ["base", "base, real clips", "tsr1", "tsr1, real clips"]
    for kind in ("pixels", "networks"):
        assert [row["row"] for row in results[kind]] == names
        assert {row["clips"] for row in results[kind]} == {NUM}
    attributes = results["attributes"]
    assert [*attributes] == [*names, "chance"]
    for name in ("base", "base, real clips", "tsr1, real clips"):
        assert attributes[name]["all_attributes"] == 1
    assert attributes["tsr1"]["direction"] == (NUM - 3) / NUM
    assert attributes["tsr1"]["colour"] == attributes["tsr1"]["shape"] == 1
    by_name = {row["row"]: row for row in results["pixels"]}
    for stage in two.stages:
        training = clips.real_clips(stage.config, NUM)[1]
        batch = real[stage.name]["video"]
        reference, _ = reference_sets.reference_sets(batch, training, batch)
        sets = (reference, videos[stage.name])
        distance = eigenvalue_distance(*map(pixel_statistics.pixel_features, sets))
        assert by_name[stage.name]["frame_fd"] == pytest.approx(distance, rel=1e-4)
    assert json.loads((tmp_path / "results.json").read_text())["attributes"]
    page = (tmp_path / "index.html").read_text()
    assert prompts[0] in page and "tsr1: Nearest training clips" in page
    assert (tmp_path / "samples.png").is_file()


def test_a_cascade_without_text_is_measured_and_other_flags_are_refused(
    folder,  # noqa: F811
    tmp_path,
):
    flags = [f"--cascade={folder}", f"--out={tmp_path}", "--num=4"]
    done = call("evaluate", *flags, "--steps=1")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["row"] for row in results["pixels"]] == [
        "base", "base, real clips", "tsr", "tsr, real clips", "ssr", "ssr, real clips",
    ]  # fmt: skip
    assert {each["steps"] for each in results["sample"].values()} == {1}
    for row in results["pixels"]:
        assert f"{row['frame_fd']:.2f}" in done.stdout
    for flag in ("--compare_steps=2", f"--baseline_reports={tmp_path}"):
        message = refused("evaluate", *flags, flag)
        assert "goes with --workdir of a model" in message
        assert message.endswith("not with --cascade")
    wrong = refused("evaluate", *flags, "--guidance_scale=1,2")
    assert "one scale at a time" in wrong


def test_a_text_model_is_measured_by_the_captions_of_held_out_clips(
    prompts, monkeypatch, tmp_path
):
    config = shapes.get_config("smoke").unlock()
    config.data.update(label_vocabulary=(), mean=-0.3, variance=0.2)
    config.conditioning.update(text_dim=8, text_dropout=0.1, text_encoder="minilm")
    config.sample.update(guidance_scale=1.0, steps=1)
    model = build.build_model(config)
    trained = runs.TrainedModel(
        model, model.init(jax.random.key(0)), config, 0, "checksum"
    )
    inputs, original = [], models.sampling.sample

    def sample(model, params, num, settings, given, **options):
        inputs.append(given.cond)
        return original(model, params, num, settings, given, **options)

    monkeypatch.setattr(models.sampling, "sample", sample)
    results = models.evaluate(
        trained, tmp_path, ReportOptions(tmp_path / "out"), num=4,
        guidance_scales=[1.0], seed=0, networks=None,
    )  # fmt: skip
    batch = pipeline.held_out_batch(config, data.open_source(config), 4)
    assert prompts == batch["caption"].tolist()
    assert [{*cond} for cond in inputs] == [{"text", "text_mask"}]
    samples = results["attributes"]["samples, guidance_scale 1"]
    assert 0 <= samples["all_attributes"] <= 1
