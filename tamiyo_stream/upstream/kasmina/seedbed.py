"""The seeds of one run and what can be done to them: germinate, cull, pause, resume, terminate, advance.

Each operation either does what it says or raises and changes nothing. What happens between a kernel's arrival and
its departure happens here, in the order that keeps the host whole: first the hook goes, then the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import distributed, nn

from schemas.enums import TelemetryLevel
from tamiyo_stream.upstream.kasmina.blending import SCHEDULE_PARAMETERS, schedule_of
from tamiyo_stream.upstream.kasmina.grafting import forget_site, graft_hook, learn_output
from tamiyo_stream.upstream.kasmina.lifecycle import (
    ATTACHED,
    BLENDED,
    PASSAGES,
    Facts,
    Gate,
    GateFailed,
    IllegalMove,
    Limits,
    Stage,
    judge,
    require_move,
)
from tamiyo_stream.upstream.kasmina.measuring import LossWindow
from tamiyo_stream.upstream.kasmina.mixing import BlendConfig
from tamiyo_stream.upstream.kasmina.parameter_groups import ParameterGroups
from tamiyo_stream.upstream.kasmina.seed import Graft, Seed
from tamiyo_stream.upstream.kasmina.site import PlacedSite

#: Builds a kernel that maps [..., width] to [..., width]. Called with the width, and with the kernel's own
#: parameters by name where the command brings any.
KernelBuilder = Callable[..., nn.Module]


class SeedUnknown(LookupError):
    """No site has a seed of that id."""


class Seedbed:
    """Seeds by id, at ``sites`` of one model. ``clock`` gives seconds and never goes back.

    ``violations`` counts the kernels that did what none may do (:meth:`fail`).
    """

    def __init__(
        self,
        sites: Sequence[PlacedSite],
        kernels: Mapping[str, KernelBuilder],
        groups: ParameterGroups,
        limits: Limits,
        clock: Callable[[], float],
    ) -> None:
        self.seeds = [Seed(placed) for placed in sites]
        self.losses = LossWindow()
        self.epoch: int | None = None
        self.violations = 0
        self.groups = groups
        self.limits = limits
        self._kernels = kernels
        self._clock = clock
        for seed in self.seeds:
            seed.move(Stage.DORMANT)
            learn_output(seed)

    def seed(self, seed_id: str) -> Seed:
        """Return the seed ``seed_id``.

        Raises:
            SeedUnknown: there is none.
        """
        found = next((seed for seed in self.seeds if seed.seed_id == seed_id), None)
        if found is None:
            known = ", ".join(seed.seed_id for seed in self.seeds)
            raise SeedUnknown(f"no seed {seed_id!r}; this host has {known or 'none'}")
        return found

    def germinate(
        self,
        seed_id: str,
        blueprint_id: str,
        parameters: Mapping[str, float] | None = None,
        *,
        blend: BlendConfig | None = None,
        policy_version: str = "",
    ) -> None:
        """Graft the kernel ``blueprint_id``; it begins to train with the next step.

        Args:
            seed_id: a DORMANT seed.
            blueprint_id: a kernel of the library.
            parameters: of a GERMINATE command: ``blending_method_index``, ``blending_schedule_start``, ``_end``,
                and the kernel's own, by name.
            blend: how tensors will mix; None: convex.
            policy_version: of the policy that decided it.

        Raises:
            SeedUnknown: no such seed.
            IllegalMove: the seed is not DORMANT.
            ScheduleInvalid: a blending method that the seed does not allow, or fractions out of order.
            BlendInvalid: a vector of alphas that does not fit the site.
            GateFailed: G0 turned it away; the reason is noted as an event.
        """
        seed, blend = self.seed(seed_id), blend or BlendConfig()
        require_move(seed_id, seed.stage, Stage.GERMINATED)
        allowed = seed.placed.site.allowed_blending_methods
        schedule = schedule_of(parameters or {}, allowed, self.limits.blending_steps)
        if seed.output is not None:
            blend.require_width(seed.output.width)
        before = tuple(filter(math.isfinite, self.losses.read()))
        own = {name: value for name, value in (parameters or {}).items() if name not in SCHEDULE_PARAMETERS}
        kernel = self._sane_kernel(seed, blueprint_id, own, before)
        self._join(seed, kernel)
        seed.note("seed_operation", operation="GERMINATE", blueprint_id=blueprint_id)
        seed.note("blend_config", mode=blend.mode, method=schedule.method, alpha_vec_len=str(len(blend.alpha_vec)))
        graft = Graft(blueprint_id, kernel, schedule, blend, policy_version, self.epoch, before)
        seed.graft = graft
        graft.handle = seed.placed.module.register_forward_hook(graft_hook(seed, self.fail))
        seed.move(Stage.GERMINATED)

    def cull(self, seed_id: str, reason: str = "commanded") -> None:
        """Take the kernel away, its parameters with it; the site is free again after the embargo.

        Raises:
            SeedUnknown: no such seed.
            IllegalMove: the seed has no kernel, or its kernel is part of the model for good.
        """
        seed = self.seed(seed_id)
        require_move(seed_id, seed.stage, Stage.CULLED)
        seed.note("seed_operation", operation="CULL", reason=reason)
        self._cull(seed, reason)

    def terminate(self, seed_id: str, reason: str = "commanded") -> None:
        """End a DORMANT or FOSSILIZED seed for good, its kernel with it.

        Raises:
            SeedUnknown: no such seed.
            IllegalMove: the seed is in another stage.
        """
        seed = self.seed(seed_id)
        seed.move(Stage.TERMINATED, reason)
        self._detach(seed)
        seed.departed = None

    def pause(self, seed_id: str) -> None:
        """Let the site act as without its kernel; the seed keeps its stage, and its steps do not count.

        Raises:
            SeedUnknown: no such seed.
            IllegalMove: the seed has no kernel, or is paused already.
        """
        self._set_paused(self.seed(seed_id), True)

    def resume(self, seed_id: str) -> None:
        """Let a paused kernel act again, where it was.

        Raises:
            SeedUnknown: no such seed.
            IllegalMove: the seed is not paused.
        """
        self._set_paused(self.seed(seed_id), False)

    def advance(self) -> None:
        """Count one training step for every seed, and move those whose time and gate have come."""
        for seed in self.seeds:
            if seed.paused:
                continue
            self._refuse_divergence(seed)
            seed.steps_in_stage += 1
            if seed.stage is Stage.BLENDING and seed.graft is not None:
                seed.graft.blended_steps += 1
            passage = PASSAGES.get(seed.stage)
            if passage is not None and seed.steps_in_stage >= passage.steps(self.limits):
                self._try(seed, passage.target, passage.gate)

    def fail(self, seed: Seed, gate: Gate, reason: str, detail: str) -> None:
        """End the graft of ``seed`` at once: its kernel did what none may do. A fossilised seed is terminated."""
        seed.fallback_used = True
        self.violations += 1
        seed.note("fallback_applied", TelemetryLevel.WARNING, reason=reason, detail=detail)
        self._end(seed, gate, reason)

    def close(self) -> None:
        """Take every kernel, its hook and its parameters away; stages stay as they are."""
        for seed in self.seeds:
            self._detach(seed)
            forget_site(seed)

    def _sane_kernel(
        self, seed: Seed, blueprint_id: str, own: Mapping[str, float], before: Sequence[float]
    ) -> nn.Module:
        """Return a new kernel that passed G0.

        Raises:
            GateFailed: with the reason.
        """
        known, width = blueprint_id in self._kernels, seed.output.width if seed.output is not None else None
        kernel, error = None, ""
        if known and width is not None:
            kernel, error = self._build(seed, blueprint_id, own)
        trained = [tensor for tensor in kernel.parameters() if tensor.requires_grad] if kernel is not None else []
        facts = Facts(
            width=width,
            quarantine_only=seed.placed.site.quarantine_only,
            kernel_known=known,
            kernel_error=error,
            parameters=len(trained),
            parameters_finite=all(bool(torch.isfinite(tensor).all()) for tensor in trained),
            baseline_steps=len(before),
            schedulers_known=self.groups.schedulers_known,
            processes=_processes(),
        )
        verdict = judge(Gate.G0_SANITY, facts, self.limits)
        if kernel is None or not verdict.passed:
            _note_failure(seed, Gate.G0_SANITY, verdict.reason)
            raise GateFailed(seed.seed_id, Gate.G0_SANITY, verdict.reason, error)
        return kernel

    def _join(self, seed: Seed, kernel: nn.Module) -> None:
        try:
            self.groups.join(kernel, f"seed.{seed.seed_id}")
        except Exception as error:  # as where a builder hands out a kernel that is grafted elsewhere
            reason = "optimizer_refused_kernel"
            _note_failure(seed, Gate.G0_SANITY, reason)
            raise GateFailed(seed.seed_id, Gate.G0_SANITY, reason, str(error)) from error
        _note_pass(seed, Gate.G0_SANITY)

    def _build(self, seed: Seed, blueprint_id: str, own: Mapping[str, float]) -> tuple[nn.Module | None, str]:
        output = seed.output
        if output is None:
            return None, ""
        try:
            # Drawing its weights must not shift the host's dropout.
            with torch.random.fork_rng(devices=[output.device] if output.device.type == "cuda" else []):
                kernel = self._kernels[blueprint_id](output.width, *([own] if own else []))
            return kernel.to(device=output.device, dtype=output.dtype), ""
        except Exception as error:  # noqa: BLE001 - a kernel's code may raise anything; the seed is turned away
            return None, f"{type(error).__name__}: {error}"

    def _try(self, seed: Seed, target: Stage, gate: Gate) -> None:
        if seed.stage is Stage.EMBARGOED and self._clock() < seed.embargoed_until:
            return
        if gate is not Gate.UNKNOWN:
            verdict = judge(gate, self._facts(seed), self.limits)
            if verdict.passed is None:
                return
            if not verdict.passed:
                _note_failure(seed, gate, verdict.reason)
                if seed.graft is not None:
                    self._cull(seed, verdict.reason)
                return
            _note_pass(seed, gate)
        seed.move(target)
        if target is Stage.DORMANT:
            seed.departed = None

    def _facts(self, seed: Seed) -> Facts:
        left = self.groups.count_of(seed.departed) if seed.departed is not None else 0
        return replace(seed.facts(), kernel_attached=seed.graft is not None, parameters_left=left)

    def _refuse_divergence(self, seed: Seed) -> None:
        """End a graft whose gradient, or whose run while it blends, is not finite: no gate need come first."""
        if seed.graft is None:
            return
        unproven = {Gate.G1_GRADIENT_HEALTH: "gradient_not_finite"}
        if seed.stage in BLENDED - {Stage.FOSSILIZED}:
            unproven[Gate.G2_STABILITY] = "loss_not_finite"
        for gate, reason in unproven.items():
            verdict = judge(gate, seed.facts(), self.limits)
            if verdict.passed is False and verdict.reason == reason:
                self._end(seed, gate, reason)
                return

    def _end(self, seed: Seed, gate: Gate, reason: str) -> None:
        _note_failure(seed, gate, reason)
        if seed.stage is Stage.FOSSILIZED:
            self.terminate(seed.seed_id, reason)
        else:
            self._cull(seed, reason)

    def _set_paused(self, seed: Seed, paused: bool) -> None:
        operation = "pause" if paused else "resume"
        if seed.stage not in ATTACHED or seed.paused is paused:
            state = f"{seed.stage.name}{', paused' if seed.paused else ''}"
            raise IllegalMove(f"seed {seed.seed_id!r} is {state}; there is nothing to {operation}")
        seed.paused = paused
        seed.note("seed_paused" if paused else "seed_resumed")

    def _cull(self, seed: Seed, reason: str) -> None:
        self._detach(seed)
        seed.embargoed_until = self._clock() + self.limits.embargo_s
        seed.move(Stage.CULLED, reason)

    def _detach(self, seed: Seed) -> None:
        graft, seed.graft, seed.paused = seed.graft, None, False
        if graft is not None:
            if graft.handle is not None:
                graft.handle.remove()
            self.groups.leave(graft.kernel)
            seed.departed = graft.kernel


def _note_pass(seed: Seed, gate: Gate) -> None:
    seed.note("gate_event", gate=gate.name, passed="true")


def _note_failure(seed: Seed, gate: Gate, reason: str) -> None:
    seed.note("gate_failure", TelemetryLevel.WARNING, gate=gate.name, reason=reason)


def _processes() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
