"""The table of OpenTelemetry instruments: names, kinds, units, attributes.

Bus figures follow the messaging semantic conventions of OpenTelemetry, everything else is ``tamiyo.*``. The
dashboards, the alert rules and their tests read this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

CONSUMED = "messaging.client.consumed.messages"
SENT = "messaging.client.sent.messages"
OPERATION = "messaging.client.operation.duration"
PROCESS = "messaging.process.duration"
DECISIONS = "tamiyo.decisions"
DECISION_TIME = "tamiyo.decision.duration"
DEADLINE_MISSED = "tamiyo.deadline.missed"
STAGE_TIME = "tamiyo.stage.duration"
BATCH_GRAPHS = "tamiyo.batch.graphs"
BATCH_NODES = "tamiyo.batch.nodes"
EVENTS = "tamiyo.events"
STATES = "tamiyo.states"
DEAD_LETTERS = "tamiyo.dead_letters"
POLICY_UPDATES = "tamiyo.policy.updates"
COMPILE_FALLBACKS = "tamiyo.gnn.compile_fallbacks"
FIELD_REPORTS = "tamiyo.field_reports"

#: Attributes of the semantic conventions.
SYSTEM, DESTINATION, OPERATION_NAME = "messaging.system", "messaging.destination.name", "messaging.operation.name"
CONSUMER_GROUP, ERROR_TYPE = "messaging.consumer.group.name", "error.type"
REDIS = "redis"


class Kind(Enum):
    """How an instrument counts."""

    COUNTER = "counter"
    HISTOGRAM = "histogram"
    GAUGE = "gauge"
    TOTAL = "total"


@dataclass(frozen=True, slots=True)
class Instrument:
    """One instrument. GAUGE and TOTAL are read when somebody scrapes, the others recorded as it happens.

    ``bounds`` are the upper bounds of a histogram's buckets, in its unit.
    """

    name: str
    kind: Kind
    unit: str
    description: str
    attributes: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


_MS = (0.5, 1, 2, 5, 10, 15, 20, 25, 30, 35, 40, 45, 60, 80, 120, 250, 500, 1000, 5000)
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.045, 0.06, 0.085, 0.12, 0.25, 0.5, 1, 5)
_COUNTS = (1, 2, 4, 8, 16, 32, 64)
_NODES = (100, 300, 1000, 3000, 10_000, 30_000, 100_000)
_C, _H, _G, _T = Kind.COUNTER, Kind.HISTOGRAM, Kind.GAUGE, Kind.TOTAL
_BUS = (SYSTEM, DESTINATION, OPERATION_NAME)
_RUN = ("run",)

INSTRUMENTS: tuple[Instrument, ...] = (
    Instrument(CONSUMED, _C, "{message}", "Entries read from the bus", (*_BUS, CONSUMER_GROUP)),
    Instrument(SENT, _C, "{message}", "Entries published", _BUS),
    Instrument(OPERATION, _H, "s", "Redis operations of the bus", (*_BUS, ERROR_TYPE), _SECONDS),
    Instrument(PROCESS, _H, "s", "From the claim of an entry to its commit", (*_BUS, ERROR_TYPE), _SECONDS),
    Instrument(DECISIONS, _C, "{decision}", "Decisions committed", ("action", "reason")),
    Instrument(DECISION_TIME, _H, "ms", "From the claim of a state packet to its answer", (), _MS),
    Instrument(DEADLINE_MISSED, _C, "{decision}", "Decisions later than their budget"),
    Instrument(STAGE_TIME, _H, "ms", "Time of a step's stages", ("stage",), _MS),
    Instrument(BATCH_GRAPHS, _H, "{graph}", "Graphs per forward pass", (), _COUNTS),
    Instrument(BATCH_NODES, _H, "{node}", "Nodes per forward pass", (), _NODES),
    Instrument(
        EVENTS,
        _C,
        "{event}",
        "Events reported: rules that fired, breakers, refusals",
        ("event", "level", "provenance"),
    ),
    Instrument(STATES, _C, "{packet}", "State packets by what became of them", ("outcome",)),
    Instrument(DEAD_LETTERS, _C, "{entry}", "Entries refused for good", ("stream", "reason")),
    Instrument(POLICY_UPDATES, _C, "{update}", "Policy updates by result", ("result", "reason")),
    Instrument(COMPILE_FALLBACKS, _C, "{fallback}", "Times the network fell back to eager", ("reason",)),
    Instrument(FIELD_REPORTS, _C, "{report}", "Field reports by outcome", ("outcome",)),
    # Read when scraped.
    Instrument("tamiyo.live", _G, "1", "1 = the worker makes progress"),
    Instrument("tamiyo.ready", _G, "1", "1 = the worker can claim"),
    Instrument("tamiyo.in_flight", _G, "{entry}", "Entries claimed and not committed"),
    Instrument("tamiyo.in_flight.age", _G, "s", "Age of the oldest entry in flight"),
    Instrument("tamiyo.stage.age", _G, "s", "Time since a stage last ticked", ("stage",)),
    Instrument("tamiyo.feed.lag", _G, "{message}", "Entries the group has not read", ("stream",)),
    Instrument("tamiyo.feed.pending", _G, "{message}", "Entries read and not acknowledged", ("stream",)),
    Instrument("tamiyo.feed.age", _G, "s", "Age of the newest entry", ("stream",)),
    Instrument(
        "tamiyo.model.info", _G, "1", "1 for the model in use", ("version", "digest", "device", "precision")
    ),
    Instrument("tamiyo.registry.entries", _G, "{entry}", "Names in a registry", ("registry",)),
    Instrument("tamiyo.hub.runs", _G, "{run}", "Runs the hub holds"),
    Instrument("tamiyo.hub.series", _G, "{series}", "Series of Tolaria and Kasmina the hub holds"),
    Instrument("tamiyo.hub.packets", _T, "{packet}", "Telemetry packets by what became of them", ("verdict",)),
    Instrument("tamiyo.hub.dropped", _T, "{point}", "Points and events that did not fit"),
    Instrument("tamiyo.source.age", _G, "s", "Age of a source's newest telemetry", ("run", "source")),
    Instrument("tamiyo.gnn.feature_coverage", _G, "1", "Mean coverage of the inputs", _RUN),
    Instrument("tamiyo.gnn.feature_coverage_by_type", _G, "1", "Coverage by type", ("run", "feature")),
    Instrument("tamiyo.gnn.mandatory_coverage", _G, "1", "Mean coverage of the mandatory inputs", _RUN),
    Instrument("tamiyo.gnn.bsds_missing", _G, "{blueprint}", "Blueprints without a safety sheet", _RUN),
    Instrument("tamiyo.gnn.bsds_failed", _G, "{blueprint}", "Blueprints that could not be evaluated", _RUN),
    Instrument("tamiyo.gnn.compile_enabled", _G, "1", "1 = the network runs compiled", _RUN),
    Instrument("tamiyo.gnn.sampled_edges", _G, "{edge}", "Edges left out by the caps", _RUN),
    Instrument("tamiyo.validation_loss", _G, "1", "Validation loss", _RUN),
    Instrument("tamiyo.training_loss", _G, "1", "Training loss", _RUN),
    Instrument("tamiyo.loss_delta", _G, "1", "Change of the loss", _RUN),
    Instrument("tamiyo.conservative_mode", _G, "1", "1 = conservative mode", _RUN),
    Instrument("tamiyo.policy.risk_score", _G, "1", "Expected severity, 0 to 1", _RUN),
    Instrument("tamiyo.policy.value_estimate", _G, "1", "Value estimate", _RUN),
    Instrument("tamiyo.blueprint.risk", _G, "1", "Risk of the command's kernel", _RUN),
    Instrument("tamiyo.breaker.state", _G, "1", "1 closed, 2 open, 3 half open", ("run", "breaker")),
    Instrument("tamiyo.breaker.failures", _G, "{failure}", "Failures that count", ("run", "breaker")),
    Instrument(
        "tamiyo.upstream.value",
        _G,
        "1",
        "What Tolaria and Kasmina report, in the unit of its name",
        ("run", "metric"),
    ),
    Instrument("tamiyo.seed.alpha", _G, "1", "Blend of a seed", ("run", "seed")),
    Instrument("tamiyo.seed.stage", _G, "1", "Stage of a seed, by number", ("run", "seed")),
)

BY_NAME = {instrument.name: instrument for instrument in INSTRUMENTS}
