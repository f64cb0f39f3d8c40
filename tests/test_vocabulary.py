"""Words that the library replaced by the field's own terms occur nowhere.

docs/glossary.md defines the present terms. `python -m tests.test_vocabulary` lists the
retired words that are left.
"""

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SEARCHED = ("*.py", "*.md", "*.toml", "Makefile", "pyproject.toml")

# Files that map old names to new ones, by design.
EXCEPTED = {
    "CHANGELOG.md",
    "docs/migration.md",
    "tests/test_migration.py",
    "tests/test_vocabulary.py",
    "vdm_jax/migration.py",
}

# Files that refuse retired flags by naming the present ones, and their tests.
FLAG_TABLES = {
    "tests/commands/test_flags.py",
    "tests/data/test_check.py",
    "tests/text/test_command.py",
    "vdm_jax/data/__main__.py",
    "vdm_jax/text/__main__.py",
}

# Old identifier, config field or word of prose -> the present one. Each is matched as a
# whole word and in this case, so that `LOOK` is not "look".
WORDS = {
    # Prose.
    "told": "conditioned on, stated",
    "asked": "requested, called",
    "spoilt": "distorted",
    "hurried": "few-step",
    "anew": "again, from the start",
    "beside": "next to, as well as",
    # diffusion
    "step_at": "noise_level",
    "step_of_angle": "noise_level_from_angle",
    "logsnr_of_angle": "logsnr_from_angle",
    "angle_of_logsnr": "angle_from_logsnr",
    "TakingTurns": "AlternatingSchedules",
    "noise_shift": "noise_logsnr_shift",
    "with_x": "from_x",
    "of_edm": "from_eps",
    "of_flow": "from_flow",
    "PREDICTIONS": "PREDICTION_TYPES",
    "COMBINES": "CFG_MODES",
    "by_frame": "the guidance schedule frames:FIRST",
    "weight_of": "weight_at",
    "clip_percentile": "dynamic_threshold",
    "two_steps": "progressive_target",
    "random_steps": "sample_step_index",
    # networks, conditions, model
    "Conditioner": "ConditioningEncoder",
    "weight_features": "guidance_embedding",
    "of_frames": "per_frame",
    "extra_up_block": "skip_downsamples",
    "frame_position": "frame_index_embedding",
    "guidable": "supports_cfg",
    "Loaded": "TrainedModel",
    "LATER": "ADDED_FIELDS",
    "GONE": "REMOVED_FIELDS",
    "up_to_date": "migrate",
    "make_stage": "LowResolution.from_config",
    "time_of_snr": "time_from_snr",
    "label_drop": "label_dropout",
    "attribute_drop": "attribute_dropout",
    "text_drop": "text_dropout",
    "text_width": "text_dim",
    # sampling
    "two_branches": "uses_cfg",
    "tile_places": "window_starts",
    "guidance_weights": "guidance_scales",
    # training
    "preview_every": "sample_every",
    "validate_every": "eval_every",
    "max_nonfinite": "max_nonfinite_updates",
    "GO_ON": "CONTINUE",
    "ASKS": "SIGNAL_REQUESTS",
    "MAY_CHANGE": "RESUME_RULES",
    "open_texts": "open_caption_embeddings",
    # distillation
    "LOOK": "MAX_REFERENCE_STEPS",
    "ANEW": "START_OVER",
    "FELL": "EXIT_METRIC_DROP",
    "SHORTEST": "MIN_ANGLE_STEP",
    "told_loss": "guidance_distillation_loss",
    "told_updates": "guidance_updates",
    "told_learning_rate": "guidance_lr",
    "halving_loss": "progressive_distillation_loss",
    "look_at_teacher": "evaluate_teacher",
    "last_updates": "updates_last_rounds",
    "student_steps": "distilled_steps",
    # metrics, evaluators, report
    "SPOILT": "DISTORTIONS",
    "fit_error": "template_mse",
    "class_score": "inception_score_i3d",
    "of_run": "read_sample_info",
    "Films": "VideoGrids",
    # data, video_io, text
    "dearness": "seek_cost",
    "commonest": "most_common",
    "MEASURED": "STATS_CLIPS",
    "TRIES": "MAX_RETRIES",
    "AHEAD": "PREFETCH_BATCHES",
    "PATIENCE": "TIMEOUT",
    "nothing_left": "no_usable_videos_message",
    "max_bad_share": "max_bad_fraction",
    "given_videos": "observed videos",
    "one_encoder": "same_text_encoder",
    # pretrained, commands, tests
    "TURNED": "KERNEL",
    "unique_names": "safe_open, which refuses a name that is there twice",
    "BESIDE": "a table of modes",
    "UPSCALING": "UPSCALE_WEIGHT",
    "FLOORS": "LAYERS",
    "room_of": "package_of",
    "arrows_up": "upward_imports",
}

# Phrases, in any case and over line breaks.
PHRASES = {
    "told by text": "conditioned on text",
    "network calls": "NFE",
    "models in a row": "cascade",
    "stages in a row": "cascade",
    "trained in turn": "trained sequentially",
    "begin anew": "start over",
    "goes on": "resumes, continues",
    "any how": "in any way",
    "a video each": "one per video",
    "frame distance": "frame_fd_efficientnet",
}

# Flags of the commands.
FLAGS = {
    "between": "--interpolate",
    "given": "--num_cond_frames",
    "frames": "--num_frames",
    "overlap": "--overlap_frames",
    "factor": "--downscale_factor",
    "snr": "--augmentation_snr",
    "schedule": "--sampling_schedule",
    "encoder": "--text_encoder",
    "threshold": "--clip_x",
    "gamma": "--ancestral_gamma",
    "windows": "--multidiffusion",
    "negative": "--negative_prompt or --negative_label",
    "until": "--last_stage",
    "intermediate": "each stage is written",
    "fvd": "--network_metrics",
    "beside": "--show_samples",
    "against": "--baseline_reports",
    "fewer": "--compare_steps",
    "deciding": "--num_key_samples",
    "guidance": "--guidance_scale",
    "combine": "--cfg_mode",
    "percentile": "--dynamic_threshold",
    "reconstruction": "--reconstruction_weight",
    "corrector": "--langevin_delta",
    "churn": "--s_churn",
    "commands": "--report_commands",
}


@cache
def pattern() -> re.Pattern:
    """Return one pattern of all retired words, phrases and flags."""
    gap = r"\s+(?:#\s+)?"
    phrases = (gap.join(map(re.escape, phrase.split())) for phrase in PHRASES)
    return re.compile(
        rf"\b(?P<phrase>(?i:{'|'.join(phrases)}))\b"
        rf"|\b(?P<word>{'|'.join(WORDS)})\b"
        rf"|(?<![\w-])--(?P<flag>{'|'.join(FLAGS)})(?![\w-]|:\S)"  # not a CSS property
    )


def retired(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the line, the retired word and the present one, for each in a text."""
    for match in pattern().finditer(text):
        if match["word"]:
            new = WORDS[match["word"]]
        elif match["flag"]:
            new = FLAGS[match["flag"]]
        else:
            words = [word for word in match[0].split() if word != "#"]
            new = PHRASES[" ".join(words).lower()]
        yield text.count("\n", 0, match.start()) + 1, match[0], new


def searched_files(root: Path) -> list[Path]:
    """Return the files known to git in which words are searched."""
    command = ["git", "ls-files", "-z", "--", *SEARCHED]
    names = subprocess.run(command, cwd=root, capture_output=True, check=True).stdout
    return [
        root / name
        for name in sorted(names.decode().strip("\0").split("\0"))
        if name not in EXCEPTED and (root / name).is_file()
    ]


def listed(root: Path) -> list[str]:
    """Return a line `file:line: old -> new` for each retired word of a repository."""
    return [
        f"{path.relative_to(root)}:{line}: {' '.join(old.split())} -> {new}"
        for path in searched_files(root)
        for line, old, new in retired(path.read_text())
        if not (old.startswith("--") and str(path.relative_to(root)) in FLAG_TABLES)
    ]


def test_no_retired_word_is_left():
    assert not listed(ROOT)


@pytest.mark.parametrize("old", [*WORDS, *PHRASES, *(f"--{flag}" for flag in FLAGS)])
def test_a_planted_word_is_noticed(old):
    assert [(line, word) for line, word, _ in retired(f'"""\n{old}: x\n"""')] == [
        (2, old)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "a_told_b",
        "told_by",
        "look",
        "LOOKS",
        "--overlap_frames=4",
        "--no-given",
        "--frames:4",
        "restep_at",
    ],
)
def test_longer_words_are_not_matched(text):
    assert not [*retired(text)]


def test_a_phrase_is_found_over_line_breaks():
    text = "One\n    # program of Network\n    # calls"
    assert [*retired(text)] == [(2, "Network\n    # calls", "NFE")]


def test_a_planted_file_is_listed(tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    for name in ("a.md", "CHANGELOG.md", "untracked.md"):
        (tmp_path / name).write_text("It is\nspoilt.\n")
    subprocess.run(["git", "add", "a.md", "CHANGELOG.md"], cwd=tmp_path, check=True)
    assert listed(tmp_path) == ["a.md:2: spoilt -> distorted"]


def test_new_words_are_not_retired():
    assert not set(WORDS) & set(WORDS.values())


def test_the_excepted_files_exist():
    """CHANGELOG.md and docs/migration.md may be absent."""
    may_lack = {"CHANGELOG.md", "docs/migration.md"}
    names = (EXCEPTED | FLAG_TABLES) - may_lack
    assert all((ROOT / name).is_file() for name in names)


if __name__ == "__main__":
    print("\n".join(listed(ROOT)))
