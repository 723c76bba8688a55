"""A seed's life: stages in order, kernels that join and leave the optimizer, moves that do not exist."""

from __future__ import annotations

import pytest
import torch

from schemas.enums import LEGAL_TRANSITIONS, SeedLifecycleStage
from tamiyo_stream.upstream.kasmina.blending import ScheduleInvalid
from tamiyo_stream.upstream.kasmina.lifecycle import PASSAGES, IllegalMove, Limits, Stage
from tamiyo_stream.upstream.kasmina.mixing import BlendConfig, BlendInvalid, BlendMode
from tamiyo_stream.upstream.kasmina.seedbed import SeedUnknown
from tests.upstream.kasmina.gardens import LIMITS, SITES, Garden, Training

S = SeedLifecycleStage


def test_every_passage_is_a_legal_move():
    assert all(passage.target in LEGAL_TRANSITIONS[stage] for stage, passage in PASSAGES.items())


def test_a_healthy_kernel_goes_through_every_stage_to_fossilized():
    garden = Garden(export_every=1).germinated().until(Stage.FOSSILIZED).train(3)

    assert garden.stages() == [
        *(S.DORMANT, S.GERMINATED, S.TRAINING, S.BLENDING, S.SHADOWING, S.PROBATIONARY, S.FOSSILIZED)
    ]
    assert garden.stages("s2") == [S.DORMANT]


def test_stages_last_as_long_as_the_limits_say():
    garden = Garden(export_every=1).germinated().until(Stage.FOSSILIZED)
    stages = [seed.stage for export in garden.exports for seed in export.seeds if seed.seed_id == "s1"]

    assert [stages.count(stage) for stage in (S.TRAINING, S.BLENDING, S.SHADOWING, S.PROBATIONARY)] == [
        LIMITS.training_steps, LIMITS.blending_steps, LIMITS.shadowing_steps, LIMITS.probation_steps
    ]  # fmt: skip


def test_a_culled_seed_is_embargoed_then_reset_then_dormant_again_and_can_germinate_anew():
    garden = Garden(export_every=1).germinated().train(4)
    garden.host.cull("s1")
    garden.train(4)
    assert garden.host.stage("s1") is Stage.EMBARGOED
    garden.clock.now = LIMITS.embargo_s - 0.1
    garden.train(3)
    assert garden.host.stage("s1") is Stage.EMBARGOED
    garden.clock.now = LIMITS.embargo_s
    garden.until(Stage.DORMANT, most=3)

    assert garden.stages() == [
        S.DORMANT, S.GERMINATED, S.TRAINING, S.CULLED, S.EMBARGOED, S.RESETTING, S.DORMANT
    ]  # fmt: skip
    garden.host.germinate("s1", "linear")
    assert garden.host.stage("s1") is Stage.GERMINATED


def test_alpha_follows_the_commanded_schedule_and_stays_at_one_afterwards():
    parameters = {"blending_method_index": 1.0, "blending_schedule_start": 0.0, "blending_schedule_end": 0.5}
    garden = Garden(export_every=1).germinated(parameters=parameters).until(Stage.FOSSILIZED)
    seeds = [seed for export in garden.exports for seed in export.seeds if seed.seed_id == "s1"]

    blending = [seed.alpha for seed in seeds if seed.stage is S.BLENDING]
    assert blending == pytest.approx([0.0, 0.25, 0.75, 1.0, 1.0, 1.0])
    assert {seed.alpha for seed in seeds if seed.stage in {S.DORMANT, S.GERMINATED, S.TRAINING}} == {0.0}
    assert {seed.alpha for seed in seeds if seed.stage in {S.SHADOWING, S.PROBATIONARY, S.FOSSILIZED}} == {1.0}
    assert garden.exported().alpha_schedule.method == "cosine"


def test_a_kernel_learns_while_it_trains_and_changes_the_model_once_it_blends():
    kernels = []

    def build(width):
        kernels.append(torch.nn.Linear(width, width))
        return kernels[-1]

    garden = Garden(kernels={"k": build}).germinated("k")
    before = kernels[0].weight.detach().clone()
    garden.until(Stage.BLENDING)
    trained = kernels[0].weight.detach().clone()
    model, x = garden.training.model.eval(), torch.ones(4, 6)
    first = model(x)
    model.train()
    garden.until(Stage.SHADOWING)
    blended = model.eval()(x)
    garden.host.pause("s1")

    assert not torch.equal(trained, before)
    assert not torch.equal(blended, model(x))
    assert not torch.equal(first, blended)


def test_a_kernels_own_parameters_reach_its_builder_and_the_schedules_do_not():
    asked = []

    def build(width, parameters=None):
        asked.append(parameters)
        return torch.nn.Linear(width, width)

    Garden(kernels={"k": build}).germinated(
        "k", parameters={"rank": 4.0, "alpha": 0.0, "blending_schedule_end": 0.5}
    )
    Garden(kernels={"k": build}).germinated("k", parameters={"blending_schedule_end": 0.5})

    assert asked == [{"rank": 4.0}, None]


def test_layers_before_the_site_still_learn_at_full_alpha():
    garden = Garden().germinated("linear").until(Stage.PROBATIONARY)
    before = garden.training.model.first.weight.detach().clone()
    garden.train()

    assert not torch.equal(garden.training.model.first.weight, before)


def test_kernel_parameters_join_the_optimizer_and_leave_with_it():
    garden = Garden().germinated().train(3)
    groups = garden.training.optimizer.param_groups
    assert [group.get("name") for group in groups] == [None, "seed.s1"]
    own = groups[1]["params"]
    assert all(tensor in garden.training.optimizer.state for tensor in own)
    garden.host.cull("s1")

    assert len(groups) == 1
    assert not any(tensor in garden.training.optimizer.state for tensor in own)


def test_a_fossilized_kernel_stays_in_the_optimizer_and_goes_on_learning():
    garden = Garden().germinated().until(Stage.FOSSILIZED)
    weight = garden.training.optimizer.param_groups[1]["params"][0]
    before = weight.detach().clone()
    garden.train(2)

    assert not torch.equal(weight, before)


def test_kernels_do_not_pile_up_gradients_where_the_loop_clears_only_the_models():
    garden = Garden().germinated().train(3)

    assert all(tensor.grad is None for tensor in garden.training.optimizer.param_groups[1]["params"])


def test_a_paused_seed_keeps_its_stage_and_alpha_resumes_where_it_was():
    garden = Garden(export_every=1).germinated().until(Stage.BLENDING).train(3)
    alpha = garden.exported().alpha
    garden.host.pause("s1")
    garden.train(20)
    assert garden.host.stage("s1") is Stage.BLENDING
    assert garden.exported().alpha == 0.0
    assert garden.exported().blend_allowed is False
    garden.host.resume("s1")
    garden.train()

    assert 0 < alpha < garden.exported().alpha < 1


def test_a_kernel_is_in_the_mode_of_its_site():
    kernels = []

    def build(width):
        kernels.append(torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.Dropout(0.5)))
        return kernels[-1]

    garden = Garden(kernels={"k": build}).germinated("k").until(Stage.BLENDING).train(4)
    model, x = garden.training.model.eval(), torch.ones(4, 6)

    assert torch.equal(model(x), model(x))
    assert not kernels[0].training
    model.train()
    garden.train()
    assert kernels[0].training


def test_two_seeds_live_side_by_side():
    garden = Garden().germinated().train(4)
    garden.host.germinate("s2", "linear")
    assert garden.host.stages() == {"s1": Stage.TRAINING, "s2": Stage.GERMINATED}
    garden.until(Stage.FOSSILIZED).until(Stage.FOSSILIZED, "s2")

    assert [group.get("name") for group in garden.training.optimizer.param_groups] == [None, "seed.s1", "seed.s2"]


@pytest.mark.parametrize(
    ("operation", "stage", "complaint"),
    [
        ("cull", Stage.DORMANT, "DORMANT and cannot become CULLED; its moves: GERMINATED, TERMINATED"),
        ("pause", Stage.DORMANT, "nothing to pause"),
        ("resume", Stage.TRAINING, "TRAINING; there is nothing to resume"),
        ("terminate", Stage.TRAINING, "cannot become TERMINATED"),
        ("cull", Stage.FOSSILIZED, "its moves: TERMINATED"),
    ],
)
def test_moves_that_do_not_exist_are_refused_and_change_nothing(operation, stage, complaint):
    garden = Garden() if stage is Stage.DORMANT else Garden().germinated().until(stage)

    with pytest.raises(IllegalMove, match=complaint):
        getattr(garden.host, operation)("s1")
    assert garden.host.stage("s1") is stage


def test_a_seed_that_is_not_dormant_cannot_germinate():
    garden = Garden().germinated()

    with pytest.raises(IllegalMove, match="GERMINATED and cannot become GERMINATED; its moves: CULLED, TRAINING"):
        garden.host.germinate("s1", "linear")
    assert len(garden.training.optimizer.param_groups) == 2


@pytest.mark.parametrize("operation", ["cull", "pause", "resume", "terminate", "stage"])
def test_unknown_seeds_are_named(operation):
    with pytest.raises(SeedUnknown, match="no seed 'other'; this host has s1, s2"):
        getattr(Garden().host, operation)("other")


def test_a_terminated_seed_takes_its_kernel_along_and_stays_so():
    garden = Garden().germinated().until(Stage.FOSSILIZED)
    garden.host.terminate("s1")
    garden.train(3)

    assert garden.host.stage("s1") is Stage.TERMINATED
    assert len(garden.training.optimizer.param_groups) == 1
    with pytest.raises(IllegalMove, match="its moves: none"):
        garden.host.germinate("s1", "identity")


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"parameters": {"blending_method_index": 9.0}}, ScheduleInvalid),
        ({"blend": BlendConfig(BlendMode.CHANNEL, alpha_vec=(0.5,))}, BlendInvalid),
    ],
)
def test_a_germination_that_cannot_be_done_changes_nothing(settings, error):
    garden = Garden().train(6)

    with pytest.raises(error):
        garden.host.germinate("s1", "identity", **settings)
    assert garden.host.stage("s1") is Stage.DORMANT
    assert len(garden.training.optimizer.param_groups) == 1


@pytest.mark.parametrize("mode", list(BlendMode))
def test_every_blend_mode_lives_to_the_end(mode):
    limits = Limits(training_steps=3, blending_steps=3, shadowing_steps=2, probation_steps=2)
    garden = Garden(limits=limits).germinated(blend=BlendConfig(mode)).until(Stage.FOSSILIZED)

    assert garden.exported().risk_score < 1.0


def test_a_stage_without_losses_waits_for_its_gate():
    garden = Garden().germinated().until(Stage.BLENDING)
    for step in range(100, 120):
        garden.training.step()
        garden.host.step(step)

    assert garden.host.stage("s1") is Stage.BLENDING


def test_a_model_under_gradient_clipping_and_evaluation_is_none_the_worse():
    training = Training(lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9))
    garden = Garden(training, sites=SITES[:1]).germinated()
    for _ in range(40):
        garden.train()
        training.model.eval()
        with torch.no_grad():
            assert bool(training.model(torch.ones(3, 6)).isfinite().all())
        training.model.train()

    assert garden.host.stage("s1") is Stage.FOSSILIZED
