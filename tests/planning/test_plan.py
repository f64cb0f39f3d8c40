"""Plans of small models, without a compiler of TPUs."""

import contextlib
import math

import jax
import numpy as np
import pytest

from configs import imagen_video, shapes
from tests import small_model
from tests.small_model import controlled_config, sd_config
from vdm_jax import build, sampling, sharding
from vdm_jax.errors import UserError
from vdm_jax.planning import hlo, plan, programs, report
from vdm_jax.planning.compiler import Compilation
from vdm_jax.planning.pieces import PieceCycles
from vdm_jax.planning.programs import Work
from vdm_jax.planning.topology import Topology

CHIPS = Topology.parse("v5e:4x4")
MEMORY = 2**34 + 1
GATHERED = hlo.Collectives({"all-gather": 2}, {"all-gather": 2**30})


@pytest.fixture(autouse=True)
def compiled(monkeypatch):
    """Replace the compiler of TPUs by one that says the same of every program."""

    @contextlib.contextmanager
    def compiling(work, topology, index=0):
        yield lambda: Compilation(GATHERED, MEMORY + index, fits=False)

    monkeypatch.setattr(plan, "compiling", compiling)


def smoke_config():
    """Return that of other tests, with Adam: of Muon the products count, too."""
    config = small_model.smoke_config()
    config.train.optimizer = "adam"
    return config


def work_of(config, kind="train", batch=16, mesh=None, **others):
    return Work(kind, programs.complete(config, batch, kind, mesh or {}), **others)


def bytes_of(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_the_state_of_training_is_four_times_the_parameters():
    """Parameters, average and two moments, in float32, and two counters and Adam's."""
    made = plan.make_plan(work_of(smoke_config()), CHIPS)
    params = build.build_model(smoke_config()).init(jax.random.key(0))
    assert made.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert made.state_bytes == 4 * bytes_of(params) + 3 * 4


def test_the_state_of_a_distillation_has_no_average_but_the_teacher():
    made = plan.make_plan(work_of(smoke_config(), "distill"), CHIPS)
    assert made.state_bytes == 4 * 4 * made.parameters + 3 * 4 + 3 * 4


def test_the_state_of_sampling_is_the_parameters():
    made = plan.make_plan(work_of(smoke_config(), "sample"), CHIPS)
    assert made.state_bytes == 4 * made.parameters


def test_fsdp_splits_the_state_as_arrays_on_a_mesh_are_split():
    made = plan.make_plan(work_of(smoke_config(), mesh={"data": 4, "fsdp": 4}), CHIPS)
    whole = plan.make_plan(work_of(smoke_config()), CHIPS)
    assert made.mesh == {"data": 4, "fsdp": 4}
    # Kernels, of which every one has an axis that 4 divides, and the rest.
    params = build.build_model(smoke_config()).init(jax.random.key(0))
    named = jax.tree_util.tree_leaves_with_path(params)
    split = sum(
        leaf.nbytes
        for path, leaf in named
        if path[-1].key in ("kernel", "embedding")
        and any(n % 4 == 0 for n in leaf.shape)
    )
    assert whole.state_bytes - made.state_bytes == 4 * split * 3 // 4


def test_flops_are_of_a_chip_and_as_many_for_any_number_of_chips():
    small = plan.make_plan(work_of(smoke_config(), batch=4), Topology.parse("v5e:2x2"))
    large = plan.make_plan(work_of(smoke_config(), batch=16), CHIPS)
    assert small.flops == pytest.approx(large.flops, rel=1e-3)


def test_what_is_recomputed_does_not_count():
    config = smoke_config()
    config.network.remat = "full"
    again = plan.make_plan(work_of(config), CHIPS)
    assert again.flops == plan.make_plan(work_of(smoke_config()), CHIPS).flops


def test_a_training_step_is_about_three_calls_of_the_network():
    config = smoke_config()
    config.data.update(label_vocabulary=())
    trained = plan.make_plan(work_of(config), CHIPS).flops
    config.sample.update(guidance_scale=1.0, steps=1)
    sampled = plan.make_plan(work_of(config, "sample"), CHIPS).flops
    config.sample.steps = 5
    assert plan.make_plan(work_of(config, "sample"), CHIPS).flops == 5 * sampled
    frames = (
        config.video.frames + config.data.joint_image_frames
    ) / config.video.frames
    assert 2.5 < trained / sampled / frames < 3.2


def test_collectives_of_sampling_are_those_of_all_steps():
    config = smoke_config()
    config.sample.steps = 7
    fields = plan.make_plan(work_of(config, "sample"), CHIPS).to_json()
    assert fields["collective_calls"] == 14
    assert fields["collective_bytes"] == 7 * 2**30


def test_the_figures_of_json_are_null_where_they_were_not_computed():
    fields = plan.make_plan(work_of(smoke_config()), CHIPS).to_json()
    assert fields["utilisation"] is None and fields["cycles"] is None
    assert fields["step_seconds"] is None and fields["examples_a_day"] is None


def test_cycles_of_pieces_give_utilisation_and_time(monkeypatch):
    """At half of the peak, a step of F FLOPs takes 2 F / peak seconds."""
    seen = []
    half = PieceCycles("half", 3, 2e6, 0.0, 1e6 * 4 * 2 * 128**2, 5)

    def measure(program, work, topology, state):
        seen.append((program.args[2]["video"].shape[0], bytes_of(state)))
        return [half]

    monkeypatch.setattr(plan, "measure_pieces", measure)
    shown = []
    work = work_of(smoke_config(), batch=32, mesh={"data": 1, "fsdp": 16})
    made = plan.make_plan(work, CHIPS, True, shown.append)
    assert shown == [half] and seen == [(2, made.state_bytes)]
    assert made.utilisation == 0.5 and made.cycles == 2e6
    fields = made.to_json()
    assert fields["memory_bytes"] == MEMORY and not fields["fits"]
    assert fields["step_seconds"] == pytest.approx(2 * made.flops / 197e12)
    a_day = 86400 * 32 / fields["step_seconds"]
    assert fields["examples_a_day"] == pytest.approx(a_day)
    text = report.format_plan(made)
    assert "DOES NOT FIT into 16 GiB" in text and "3 x half" in text


def test_a_piece_is_of_whole_examples_on_a_chip():
    with pytest.raises(UserError, match="not 0.5 examples a chip"):
        plan.make_plan(work_of(smoke_config(), batch=8), CHIPS, True)
    with pytest.raises(UserError, match="not context=2"):
        plan.make_plan(work_of(smoke_config(), mesh={"context": 2}), CHIPS, True)


def test_a_stage_of_a_cascade_and_its_text_are_planned():
    config = imagen_video.get_config("smoke").unlock()
    config.conditioning.update(text_dim=24, text_dropout=0.1)
    made = plan.make_plan(work_of(config), CHIPS)
    assert made.flops > 0
    [program] = programs.make_programs(made.work, sharding.make_mesh())
    shapes_of_batch = program.args[2]
    n = 1 + config.data.joint_image_frames
    assert shapes_of_batch["text"].shape == (16, n, 128, 24)
    assert shapes_of_batch["text_mask"].shape == (16, n, 128)


def test_a_program_of_a_plan_is_that_of_the_command():
    """What is planned of sampling takes the arguments that `sample` gives it."""
    config = smoke_config()
    config.sample.update(steps=2, guidance_scale=2.0, label="a,x")
    config.conditioning.label_dropout = 0.1
    work = work_of(config, "sample", batch=2)
    model = build.build_model(work.config)
    seen = []

    def lower(params, conditions, keys, carry, table, row, stop, weights, *, program):
        seen.append((params, conditions, keys, carry, table, weights))
        return carry

    run_steps = sampling.batches.run_steps
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling.batches, "run_steps", lower)
        settings = sampling.Settings.from_config(work.config.sample)
        label = sampling.label_array(model, 2, "a,x")
        inputs = sampling.SamplingInputs({"label": label})
        params = model.init(jax.random.key(0))
        with contextlib.suppress(UserError):  # noise is not finite by chance
            sampling.generate(model, params, 2, settings, inputs)
    [program, *_] = programs.make_programs(work, sharding.make_mesh())
    planned = (*program.args[:5], program.args[7])

    def form(tree):
        return jax.tree.map(lambda a: f"{a.dtype} {np.shape(a)}", tree)

    assert program.function is run_steps
    assert form(planned) == form(seen[0])


def test_videos_larger_than_this_machine_are_planned():
    """A batch of the largest stage has 360 GiB of low-resolution channels alone."""
    config = imagen_video.get_config("smoke").unlock()
    config.video.update(frames=128, height=768, width=1280)
    config.network.levels = config.network.levels[:1]
    config.network.mid_layers = ()
    for kind in ("train", "sample"):
        work = work_of(config, kind, batch=256)
        [program] = programs.make_programs(work, sharding.make_mesh())
        largest = max(map(bytes_of, jax.tree.leaves(program.args)))
        assert largest >= 256 * 128 * 768 * 1280 * 3


def test_control_video_is_planned_by_an_image_model():
    config = controlled_config()
    config.control = {"kinds": ("edges",), "hint_channels": (6,)}
    config = programs.with_control(config)
    config.sample.update(steps=2, batch_size=1)
    work = work_of(config, "sample", system="control_video", num_frames=4)
    image = plan.make_plan(work_of(config, "sample"), CHIPS)
    video = plan.make_plan(work, CHIPS)
    assert video.parameters == image.parameters
    assert video.flops > 4 * image.flops  # attention reads all frames


def test_frames_are_interpolated_in_the_steps_of_the_options_alone():
    config = controlled_config()
    config.control = {"kinds": ("edges",), "hint_channels": (6,)}
    config.sample.update(steps=8, batch_size=1)
    work = work_of(config, "sample", batch=1, system="control_video", num_frames=4)
    plain, smoothed = plan.on_one_device(work)
    assert (plain.calls, smoothed.calls) == (6, 2)  # smooth_steps=2
    made = plan.make_plan(work, Topology.parse("v5e:1x1"))
    assert made.calls == 8
    total = plan.count_flops(plain) + plan.count_flops(smoothed)
    assert made.flops == total
    assert made.memories == (("step with interpolation", MEMORY + 1),)
    assert made.memory_bytes == MEMORY + 1


def test_a_control_net_is_for_an_image_model_only():
    with pytest.raises(UserError, match="kind 'sd'"):
        programs.with_control(smoke_config())


def test_other_meshes_are_all_of_the_chips_and_the_first_fits():
    made = plan.make_plan(work_of(smoke_config()), CHIPS)
    assert [math.prod(mesh.axes.values()) for mesh in made.other_meshes] == [16] * 5
    assert {mesh.axes.get("fsdp", 1) for mesh in made.other_meshes} == {1, 2, 4, 8, 16}


@pytest.mark.slow
@pytest.mark.parametrize("stage", imagen_video.STAGES)
def test_more_chips_hold_no_more_of_a_state(stage):
    """Also where the widths of a stage do not divide by the number of chips."""
    config = programs.complete(imagen_video.get_config(stage), 512, "train", {})
    model = build.build_model(config)
    params = jax.eval_shape(model.init_params, jax.random.key(0))
    rules = config.mesh.param_rules
    sizes = [
        plan.chip_bytes(plan.abstract_mesh({"fsdp": chips}), params, rules)
        for chips in (16, 256, 512)
    ]
    assert sizes == sorted(sizes, reverse=True)
    whole = bytes_of(params)
    assert sizes[1] < 1.5 * whole / 256 + 2**24


def test_a_state_that_does_not_fit_is_ranked_behind():
    """The state of 1.15 B parameters is 17 GiB: no copy on each chip of 16 GiB."""
    config = sd_config()
    config.network["levels"] = (dict(channels=8192, blocks=1, layers=()),)
    work = work_of(config)
    [main] = plan.on_one_device(work)
    meshes = plan.estimate_meshes(work, CHIPS, main)
    fits = [mesh.state_bytes < 2**33 for mesh in meshes]
    assert not all(fits) and fits == sorted(fits, reverse=True)


@pytest.mark.parametrize(
    ("mesh", "batch", "message"),
    [
        ({"fsdp": 3}, 16, "fsdp=3 is not of the 16 chip"),
        ({"data": 1, "fsdp": 8}, 16, "not of the 16 chip"),
        ({"fsdp": 16}, 24, "24 examples are not divided"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(mesh, batch, message):
    with pytest.raises(UserError, match=message):
        plan.make_plan(work_of(smoke_config(), mesh=mesh, batch=batch), CHIPS)


def test_what_cannot_be_planned_is_refused():
    config = shapes.get_config("smoke").unlock()
    config.task = "autoencoder"
    with pytest.raises(UserError, match="plans diffusion models"):
        programs.complete(config, 16, "train", {})
