"""What is known about blueprints, across runs: the host graphs, the kernel catalogue and the safety sheets.

Fed by Urza and Urabrask, read on every step, never fetched on the hot path: a blueprint that has not arrived is
missing, its features are masked and counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from schemas.enums import BlueprintKind
from schemas.urabrask import BlueprintSafetyFailed, BlueprintSafetySheet
from schemas.urza import Blueprint

#: Bounds of the tables; the oldest entry leaves first (every internal map has a cap, design §5).
MAX_HOSTS = 256
MAX_KERNELS = 1024
MAX_SHEETS = 2048


@dataclass(slots=True)
class Tables:
    """Newest blueprint and safety sheet by blueprint id.

    ``hosts`` are the models in training, ``kernels`` the candidates to graft, in order of arrival. ``failures``
    holds the reason for blueprints whose newest evaluation failed.
    """

    hosts: dict[str, Blueprint] = field(default_factory=dict)
    kernels: dict[str, Blueprint] = field(default_factory=dict)
    sheets: dict[str, BlueprintSafetySheet] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

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

    def add_failure(self, failure: BlueprintSafetyFailed) -> None:
        """Record that ``failure.blueprint_id`` could not be evaluated; an older sheet stays in force."""
        self.failures[failure.blueprint_id] = failure.reason
        _trim(self.failures, MAX_SHEETS)

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
