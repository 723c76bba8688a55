"""Tells the bus and the log what became of a policy: one telemetry packet per event (domain.md §6.3, §8.4)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import structlog
from redis.asyncio import Redis

from producers.commit import Commit, Committer, Output
from schemas.entry import encode_entry
from schemas.enums import HealthStatus, TelemetryLevel
from schemas.simic import PolicyUpdate
from schemas.telemetry import MetricPoint, SystemHealth, TelemetryEvent, TelemetryPacket
from tamiyo_stream.hub.priority import destinations
from tamiyo_stream.hub.step_telemetry import SOURCE
from tamiyo_stream.inference.shadow import ShadowReport
from tamiyo_stream.inference.swap import RollbackReason
from tamiyo_stream.settings import Settings
from tamiyo_stream.worker.connection import through_outages
from tamiyo_stream.worker.refusals import new_id

#: Longest text of a refusal in an event; the log has all of it.
MAX_DETAIL = 400

log = structlog.get_logger("tamiyo.policies")


@dataclass(frozen=True, slots=True)
class PolicyName:
    """What commands call a policy: its ``version`` (the trainer's name) and the ``digest`` of its weights."""

    version: str
    digest: str


class PolicyEvents:
    """Publishes on the telemetry stream, and remembers in Redis which updates were taken back."""

    def __init__(self, settings: Settings, client: Redis, committer: Committer) -> None:
        self._settings = settings
        self._client = client
        self._committer = committer

    async def rejected(self, update: PolicyUpdate, reason: str, detail: str) -> None:
        """Tell that ``update`` is not used, and why; the old policy serves on."""
        particulars = {"reason": reason, "policy_id": update.policy_id, "detail": detail[:MAX_DETAIL]}
        log.warning("policy_update_rejected", **(particulars | {"detail": detail}))
        await self._publish(update, "policy_update_rejected", TelemetryLevel.WARNING, particulars)

    async def compared(self, update: PolicyUpdate, name: PolicyName, report: ShadowReport) -> None:
        """Publish what the shadow evaluation found."""
        figures = {
            "graphs": (float(report.graphs), "count"),
            "agreement": (report.agreement, "ratio"),
            "value_drift": (report.value_drift, "value"),
            "risk_drift": (report.risk_drift, "ratio"),
            "latency_ratio": (report.latency_ratio, "ratio"),
        }
        metrics = [
            MetricPoint(name=f"tamiyo.policy.shadow.{figure}", value=value, unit=unit)
            for figure, (value, unit) in figures.items()
            if value is not None and (report.graphs or figure == "graphs")
        ]
        log.info("policy_shadow_report", **_names(update, name), **{m.name: round(m.value, 4) for m in metrics})
        level = TelemetryLevel.INFO
        await self._publish(update, "policy_shadow_report", level, _names(update, name), metrics)

    async def applied(
        self, update: PolicyUpdate, name: PolicyName, *, agreement: float | None, share: float
    ) -> None:
        """Tell that ``update`` decides from now on, for ``share`` of the runs; no ``agreement``: not shadowed."""
        particulars = _names(update, name) | {
            "agreement": "" if agreement is None else f"{agreement:.4f}",
            "share": f"{share:g}",
        }
        log.info("policy_update_applied", **particulars)
        await self._publish(update, "policy_update_applied", TelemetryLevel.INFO, particulars)

    async def promoted(self, update: PolicyUpdate, name: PolicyName, decisions: int) -> None:
        """Tell that the policy has proved itself in so many ``decisions``: it answers all runs for good."""
        particulars = _names(update, name) | {"decisions": str(decisions)}
        log.info("policy_promoted", **particulars)
        await self._publish(update, "policy_promoted", TelemetryLevel.INFO, particulars)

    async def rolled_back(
        self, update: PolicyUpdate, name: PolicyName, reason: RollbackReason, decisions: int
    ) -> None:
        """Tell that the old policy decides again; a restarted worker passes over ``update`` then."""
        particulars = _names(update, name) | {"reason": reason.value, "decisions": str(decisions)}
        log.warning("policy_rolled_back", **particulars)
        once = self._rolled_back_key(update)
        await self._publish(update, "policy_rolled_back", TelemetryLevel.WARNING, particulars, once_key=once)

    async def was_rolled_back(self, update: PolicyUpdate) -> bool:
        """Whether some worker took ``update`` back lately."""
        key = self._rolled_back_key(update)
        return bool(await through_outages("look up policy", lambda: self._client.exists(key)))

    def _rolled_back_key(self, update: PolicyUpdate) -> str:
        return f"{self._settings.key_prefix}:policy:rolled_back:{update.policy_id}"

    async def _publish(
        self,
        update: PolicyUpdate,
        event: str,
        level: TelemetryLevel,
        particulars: Mapping[str, str],
        metrics: list[MetricPoint] | None = None,
        *,
        once_key: str = "",
    ) -> None:
        settings = self._settings
        told = TelemetryEvent(
            event_id="evt-1",
            description=event,
            level=level,
            attributes={**particulars, "worker_id": settings.worker_id},
        )
        healthy = level < TelemetryLevel.WARNING
        packet = TelemetryPacket(
            packet_id=f"{event}-{update.policy_id}-{new_id()}",
            timestamp=time.time_ns(),
            source_subsystem=SOURCE,
            level=level,
            metrics=metrics or [],
            events=[told],
            system_health=SystemHealth(
                status=HealthStatus.HEALTHY if healthy else HealthStatus.DEGRADED,
                summary=event,
                indicators={"priority": "MESSAGE_PRIORITY_NORMAL"},
            ),
        )
        commit_id = new_id()
        fields = encode_entry(packet, settings.keyring, event_id=commit_id)
        outputs = [Output(settings.key(s), fields, settings.telemetry_maxlen) for s in destinations(packet)]
        commit = Commit(commit_id, outputs, once_key=once_key, once_ttl_s=settings.snapshot_ttl_s)
        await through_outages("publish policy event", lambda: self._committer.commit(commit))


def _names(update: PolicyUpdate, name: PolicyName) -> dict[str, str]:
    return {"policy_id": update.policy_id, "version": name.version, "digest": name.digest}
