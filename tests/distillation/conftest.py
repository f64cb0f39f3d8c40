"""A teacher, and its finished distillation with guidance."""

import jax
import pytest

from tests.distillation.cases import config, noisy, teacher_config
from vdm_jax import build
from vdm_jax.distillation.driver import distill
from vdm_jax.distillation.students import Distiller
from vdm_jax.pretrained import params as params_file

compile_update = Distiller._update


@pytest.fixture(scope="package")
def teacher(tmp_path_factory):
    """Return a shipped model whose output is not zero."""
    folder = tmp_path_factory.mktemp("teacher")
    config = teacher_config()
    model = build.build_model(config)
    params_file.write(
        folder / "params.safetensors", noisy(model.init(jax.random.key(0)))
    )
    (folder / "config.json").write_text(config.to_json_best_effort())
    return folder


@pytest.fixture(scope="package", autouse=True)
def programs():
    """Compile one update for each kind of round, for all distillations of the tests."""
    updates = {}

    def once(self, run, distills_guidance, *args):
        kind = (
            distills_guidance,
            self.config.distill.sampler,
            bool(self.config.distill.guidance_range),
        )
        if kind not in updates:
            updates[kind] = compile_update(self, run, distills_guidance, *args)
        return updates[kind]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Distiller, "_update", once)
        yield


@pytest.fixture(scope="package")
def done(teacher, tmp_path_factory):
    """Return a finished distillation: 8 steps with guidance, then 4, 2, 1."""
    workdir = tmp_path_factory.mktemp("done")
    distill(config(), str(teacher), workdir)
    return workdir
