"""What is known across runs: the host graphs, the kernel catalogue, the safety sheets, the newest policy update.

Fed by Urza and Urabrask, read on every step, never fetched on the hot path: a blueprint that has not arrived is
missing, its features are masked and counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from schemas.enums import BlueprintKind, EmergencyLevel
from schemas.operator import OperatorDirective
from schemas.simic import PolicyUpdate
from schemas.telemetry import EmergencySignal
from schemas.urabrask import BlueprintSafetyFailed, BlueprintSafetySheet
from schemas.urza import Blueprint

#: Bounds of the tables; the oldest entry leaves first (every internal map has a cap, design §5).
MAX_HOSTS = 256
MAX_KERNELS = 1024
MAX_SHEETS = 2048
MAX_EMERGENCIES = 4096
MAX_DIRECTIVES = 256


@dataclass(slots=True)
class Tables:
    """Newest blueprint and safety sheet by blueprint id.

    ``hosts`` are the models in training, ``kernels`` the candidates to graft, in order of arrival. ``failures``
    holds the reason for blueprints whose newest evaluation failed. ``policy_update`` is the newest one published.
    ``emergencies`` holds Tolaria's newest signal by run id, "" for all runs.
    """

    hosts: dict[str, Blueprint] = field(default_factory=dict)
    kernels: dict[str, Blueprint] = field(default_factory=dict)
    sheets: dict[str, BlueprintSafetySheet] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    policy_update: PolicyUpdate | None = None
    emergencies: dict[str, EmergencySignal] = field(default_factory=dict)
    directives: list[OperatorDirective] = field(default_factory=list)

    def add_blueprint(self, blueprint: Blueprint) -> bool:
        """Store ``blueprint`` unless a newer one is known; return whether it was stored."""
        table, cap = (
            (self.kernels, MAX_KERNELS) if blueprint.kind is BlueprintKind.KERNEL else (self.hosts, MAX_HOSTS)
        )
        known = table.get(blueprint.blueprint_id)
        if known is not None and known.issued_at > blueprint.issued_at:
            return False
        table[blueprint.blueprint_id] = blueprint
        _trim(table, cap)
        return True

    def add_sheet(self, sheet: BlueprintSafetySheet) -> bool:
        """Store ``sheet`` unless a newer one is known; return whether it was stored."""
        known = self.sheets.get(sheet.blueprint_id)
        if known is not None and known.issued_at > sheet.issued_at:
            return False
        self.sheets[sheet.blueprint_id] = sheet
        self.failures.pop(sheet.blueprint_id, None)
        _trim(self.sheets, MAX_SHEETS)
        return True

    def add_failure(self, failure: BlueprintSafetyFailed) -> bool:
        """Record that ``failure.blueprint_id`` could not be evaluated; an older sheet stays in force.

        Return False where a newer sheet is known: the failure is history then.
        """
        sheet = self.sheets.get(failure.blueprint_id)
        if sheet is not None and sheet.issued_at > failure.issued_at:
            return False
        self.failures[failure.blueprint_id] = failure.reason
        _trim(self.failures, MAX_SHEETS)
        return True

    def add_policy_update(self, update: PolicyUpdate) -> bool:
        """Keep ``update`` unless a newer one is known; return whether it was kept."""
        known = self.policy_update
        if known is not None and known.issued_at >= update.issued_at:
            return False
        self.policy_update = update
        return True

    def add_emergency(self, signal: EmergencySignal) -> bool:
        """Keep Tolaria's ``signal`` for its run (all runs where it names none) unless a newer one is known."""
        run_id = signal.run_id or ""
        known = self.emergencies.get(run_id)
        if known is not None and known.triggered_at > signal.triggered_at:
            return False
        self.emergencies[run_id] = signal
        _trim(self.emergencies, MAX_EMERGENCIES)
        return True

    def add_directive(self, directive: OperatorDirective) -> None:
        """Keep an operator's directive; the oldest leaves beyond :data:`MAX_DIRECTIVES`."""
        self.directives.append(directive)
        del self.directives[:-MAX_DIRECTIVES]

    def directives_for(self, run_id: str) -> list[OperatorDirective]:
        """Return the directives on a run, those on all runs included."""
        return [directive for directive in self.directives if directive.run_id in {None, "", run_id}]

    def emergency_level(self, run_id: str) -> EmergencyLevel:
        """Return the level that holds for a run: the higher of its own and of all runs'."""
        signals = (self.emergencies.get(run_id), self.emergencies.get(""))
        return max((signal.level for signal in signals if signal is not None), default=EmergencyLevel.UNSPECIFIED)

    def unsheeted(self, blueprint_ids: Iterable[str]) -> tuple[str, ...]:
        """Return those of ``blueprint_ids`` that have no safety sheet, in order, each once."""
        return tuple(dict.fromkeys(name for name in blueprint_ids if name not in self.sheets))

    def risk_of(self, blueprint_id: str) -> float | None:
        """Return the blueprint's risk in [0, 1]: the sheet's score, else the descriptor's, else None."""
        sheet = self.sheets.get(blueprint_id)
        if sheet is not None and sheet.risk_score is not None:
            return sheet.risk_score
        blueprint = self.kernels.get(blueprint_id) or self.hosts.get(blueprint_id)
        descriptor = blueprint.descriptor if blueprint is not None else None
        return descriptor.risk if descriptor is not None else None


def _trim(table: dict[str, Any], cap: int) -> None:
    while len(table) > cap:
        del table[next(iter(table))]
