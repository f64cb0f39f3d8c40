"""``python -m vdm_jax.settings``: print docs/settings.md, tables of all settings."""

import argparse
from collections.abc import Iterator

from vdm_jax import runtime
from vdm_jax.settings import DISTILLATION, TRAINING
from vdm_jax.settings.declaration import rows

HEAD = """# Settings

Every field of a config, as `vdm_jax/settings/sections.py` declares it. It is what
`python -m vdm_jax.settings` prints. `--config.train.steps=1000` sets a field. Settings
of `sample` are flags of the commands too: `--steps=64`."""
COLUMNS = "| field | default | allowed | meaning |\n|---|---|---|---|"


def page() -> Iterator[str]:
    """Yield the lines of the page."""
    yield HEAD
    for command, sections in (("train.py", TRAINING), ("distill.py", DISTILLATION)):
        yield f"\n## {command}"
        for name, section in sections.items():
            yield f"\n{section.__doc__.splitlines()[0]}\n\n{COLUMNS}"
            for cells in rows(section, f"{name}." if name else ""):
                field, default, *texts = (cell.replace("|", r"\|") for cell in cells)
                yield f"| `{field}` | `{default}` | {' | '.join(texts)} |"


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser("python -m vdm_jax.settings")
    parser.description = "Print the tables of all settings, as docs/settings.md."
    parser.parse_args()
    print(*page(), sep="\n")


if __name__ == "__main__":
    runtime.run(main)
