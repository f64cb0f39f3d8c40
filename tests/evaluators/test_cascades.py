"""Evaluation of cascades and of models that are conditioned on text."""

import json
from typing import Any

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
from vdm_jax.errors import UserError
from vdm_jax.evaluators import clips, models
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

    def sample(cascade, num, cond, *, seed, progress, on_stage):
        seen.append((num, {*cond}, seed))
        for stage in cascade.stages:
            on_stage(stage, runs.TrainedModel(None, None, None, 7, ""), None)
        return {name: each / 127.5 - 1 for name, each in videos.items()}

    monkeypatch.setattr(models.cascades, "sample", sample)
    results = models.evaluate(
        two, ReportOptions(tmp_path), num=NUM, seed=3, networks=CheapNetworks()
    )["stages"]
    assert seen == [(NUM, {"text", "text_mask"}, 3)]
    assert prompts == real["base"]["caption"].tolist()
    names = ["samples", "training real", "held-out real"]
    for stage in two.stages:
        own = results[stage.name]
        for kind in ("pixels", "networks"):
            assert [row["row"] for row in own[kind]] == names
            assert {row["clips"] for row in own[kind]} == {NUM}
        assert own["sample"]["step"] == 7
        reversed_clips = 3 if stage.name == "tsr1" else 0
        attributes = own["attributes"]
        assert attributes["samples"]["direction"] == (NUM - reversed_clips) / NUM
        assert attributes["samples"]["colour"] == attributes["samples"]["shape"] == 1
        assert (
            attributes["real"]["all_attributes"] > 0.95 > attributes["chance"]["speed"]
        )
        training = clips.real_clips(stage.config, NUM).training
        batch = real[stage.name]["video"]
        reference, _ = reference_sets.reference_sets(batch, training, batch)
        sets = (reference, videos[stage.name])
        distance = eigenvalue_distance(*map(pixel_statistics.pixel_features, sets))
        assert own["pixels"][0]["frame_fd"] == pytest.approx(distance, rel=1e-4)
    assert json.loads((tmp_path / "results.json").read_text())["stages"] == results
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
    results = json.loads((tmp_path / "results.json").read_text())["stages"]
    assert [*results] == ["base", "tsr", "ssr"]
    for stage in results.values():
        assert stage["sample"]["steps"] == 1
        for row in stage["pixels"]:
            assert f"{row['frame_fd']:.2f}" in done.stdout
    message = refused("evaluate", *flags, f"--baseline_reports={tmp_path}")
    assert "goes with --workdir of a model" in message
    assert message.endswith("not with --cascade")


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
    monkeypatch.setattr(runs, "load", lambda workdir, size=None: trained)
    inputs, original = [], models.sampling.sample

    def sample(model, params, num, settings, given, run):
        inputs.append(given.cond)
        return original(model, params, num, settings, given, run)

    monkeypatch.setattr(models.sampling, "sample", sample)
    batch = pipeline.held_out_batch(config, data.open_source(config), 4)
    cascade = clips.model_cascade(model, config, tmp_path)
    options = ReportOptions(tmp_path / "out")
    towers: Any = EqualTowers(config, batch)
    ask = {"num": 4, "seed": 0, "networks": None, "image_text": towers}
    results = models.evaluate(cascade, options, **ask)
    assert prompts == batch["caption"].tolist()
    assert [{*cond} for cond in inputs] == [{"text", "text_mask"}]
    assert 0 <= results["attributes"]["samples"]["all_attributes"] <= 1
    samples, real, others = results["text"]
    assert real["clip_score"] == pytest.approx(100) and others["clip_score"] < 99
    assert 0 <= samples["clip_score"] < 99 and real["clip_score_error"] < 1e-4
    towers.config.video.height *= 2
    with pytest.raises(UserError, match="is a model of frames of"):
        models.evaluate(cascade, options, **ask)


class EqualTowers:
    """A model that embeds each caption of a batch as the clip that has it."""

    def __init__(self, config, batch):
        self.config = config.copy_and_resolve_references()
        pairs = zip(batch["caption"], batch["video"], strict=True)
        self.clips = {str(caption): clip for caption, clip in pairs}

    def embed_videos(self, videos):
        flat = videos.reshape(len(videos), -1) / np.float32(255)
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)

    def embed_texts(self, texts):
        return self.embed_videos(np.stack([self.clips[text] for text in texts]))
