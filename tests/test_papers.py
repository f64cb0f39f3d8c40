"""docs/papers.md: its tables show the values that the configs of papers have."""

import ast
import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import base, imagen_video, vdm

DOC = Path(__file__).parents[1] / "docs" / "papers.md"
PAPERS = {
    "Video Diffusion Models": (vdm.get_config, vdm.VARIANTS[:-1], base.base()),
    "Imagen Video": (imagen_video.get_config, imagen_video.STAGES, base.base()),
    "Progressive distillation": (
        lambda _: base.distillation(),
        ("default",),
        ConfigDict({"distill": dict.fromkeys(base.distillation().distill)}),
    ),
}
LEVELS = {"network.levels.channels", "network.levels.blocks", "attention"}
# Where the data are, how often something is saved or sampled, precision and memory.
LEFT_OUT = re.compile(
    r"data\.(source|path|tfds_name|label_vocabulary|workers|text_embeddings_dir)"
    r"|train\.\w+_every|network\.(dtype|remat)|distill\.(guidance_range|metric|num|"
    r"max_metric_drop)"
)
IMAGE_LAYERS = {"spatial_attention", "cross_attention"}


def attention(config) -> tuple:
    """Return the heights of the frame at which a level has spatial attention."""
    levels = enumerate(config.network.levels)
    return tuple(
        config.video.height // config.network.patch_size >> i
        for i, level in levels
        if "spatial_attention" in level["layers"]
    )


def time(config) -> tuple:
    """Return the temporal layers, which are the same at all levels."""
    levels = [level["layers"] for level in config.network.levels]
    (temporal,) = {
        tuple(layer for layer in layers if layer not in IMAGE_LAYERS)
        for layers in (*levels, config.network.mid_layers)
    }
    return temporal


def value(config, field: str):
    """Return the value of a field; for a field of levels, one value per level."""
    if field in ("attention", "time"):
        return {"attention": attention, "time": time}[field](config)
    section, name, *part = field.split(".")
    found = config[section][name]
    return tuple(level[part[0]] for level in found) if part else found


def rows(paper: str) -> list[tuple[list[str], str, object, str, str]]:
    """Return (fields, variants, ours, the paper's cell, remark) per row of a table."""
    (section,) = (s for s in DOC.read_text().split("\n## ") if s.startswith(paper))
    table = []
    for line in re.findall(r"^\| `.*\|$", section, re.M):
        fields, variants, ours, papers, remark = line[1:-1].split("|")
        table.append(
            (
                re.findall(r"`([^`]+)`", fields),
                variants.strip(),
                ast.literal_eval(ours.strip().strip("`")),
                papers.strip(),
                remark.strip(),
            )
        )
    return table


def select(variants: str, known: tuple) -> list[str]:
    """Return the variants that a cell names: all, all but some, or some."""
    everything, but, some = variants.partition("all but ")
    names = [n.strip() for n in (some if but else everything).split(",")]
    if names == ["all"]:
        return [*known]
    assert {*names} <= {*known}
    return [n for n in known if (n in names) != bool(but)]


@pytest.mark.parametrize("paper", PAPERS)
def test_our_values_in_the_tables_are_those_of_the_configs(paper):
    get_config, known, _ = PAPERS[paper]
    configs = {name: get_config(name) for name in known}
    for fields, variants, ours, papers, remark in rows(paper):
        for name in select(variants, known):
            values = tuple(value(configs[name], field) for field in fields)
            actual = values if len(fields) > 1 else values[0]
            assert actual == ours, f"{paper}, {name}: {', '.join(fields)}"
        if papers != "not given" and not re.fullmatch(r"`[^`]+`", papers):
            assert remark, f"{paper}: no reason is given for {papers}"
        elif papers != "not given" and ast.literal_eval(papers.strip("`")) != ours:
            assert remark, f"{paper}: no reason for {ours}, the paper having {papers}"


@pytest.mark.parametrize("paper", PAPERS)
def test_every_field_that_a_config_sets_is_in_its_table_once(paper):
    get_config, known, plain = PAPERS[paper]
    for name in known:
        documented = [
            field
            for fields, variants, *_ in rows(paper)
            if name in select(variants, known)
            for field in fields
        ]
        assert len(documented) == len({*documented}), f"{paper}, {name}: a field twice"
        config = get_config(name)
        for section in plain:
            if not isinstance(plain[section], ConfigDict):
                continue
            for key, default in plain[section].items():
                field = f"{section}.{key}"
                if config[section][key] == default or LEFT_OUT.fullmatch(field):
                    continue
                parts = LEVELS if field == "network.levels" else {field}
                assert parts <= {*documented}, (
                    f"{paper}, {name}: {field} is in no table"
                )


def test_video_prediction_is_sampled_as_in_the_paper():
    bair, kinetics = vdm.get_config("bair").sample, vdm.get_config("kinetics600").sample
    assert (bair.steps, bair.reconstruction_weight) == (256, 50.0)
    assert (kinetics.steps, kinetics.reconstruction_weight) == (128, 9.0)
    assert bair.langevin_delta == kinetics.langevin_delta == 0.1
