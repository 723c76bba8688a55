"""Every metric that Tamiyo puts on the bus: name, unit, attributes, when, and the other names it goes by.

The names of domain.md §6.2. Where sources call a figure differently it is sent under each name (``also``). The
step's packet, the reference page and the dashboards' test all follow this table; a value that is not known is not
sent.
"""

from __future__ import annotations

from dataclasses import dataclass

EVERY = "every decision"


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure. ``field``: the measurement of a step it shows; empty where code of its own writes it.

    A name that ends in ``.<…>`` stands for one metric per name of a set, as per coverage type.
    """

    name: str
    unit: str
    when: str
    meaning: str
    field: str = ""
    also: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Every name the figure is sent under."""
        return (self.name, *self.also)


_INFERRED = "the network answered"
_BLENDS = "the command blends"
_METHOD = ("method",)

#: What a step's packet holds.
STEP_METRICS: tuple[Metric, ...] = (
    Metric("tamiyo.training_loss", "loss", "known", "Training loss of the step", "training_loss"),
    Metric("tamiyo.validation_loss", "loss", "known", "Validation loss of the step", "validation_loss"),
    Metric("tamiyo.loss_delta", "loss", "known", "Change against the run's last step", "loss_delta"),
    Metric(
        "tamiyo.conservative_mode",
        "bool",
        EVERY,
        "Conservative mode after the risk pass",
        "conservative_mode",
        also=("tamiyo.decision.conservative_mode",),
    ),
    Metric(
        "tamiyo.inference.latency_ms",
        "ms",
        _INFERRED,
        "Queue, batch and forward pass",
        "inference_ms",
        also=("tamiyo.gnn.inference.latency_ms", "tamiyo.gnn.latency_ms"),
    ),
    Metric("tamiyo.graph.build_ms", "ms", "known", "Time to build the step's graph", "graph_ms"),
    Metric("tamiyo.decision.latency_ms", "ms", EVERY, "From the claim of the packet to its answer", "decision_ms"),
    Metric("tamiyo.decision.budget_ms", "ms", "known", "Most the decision may take", "budget_ms"),
    Metric("tamiyo.gnn.compile_enabled", "bool", "known", "Whether the network runs compiled", "compile_enabled"),
    Metric("tamiyo.gnn.compile_warm_ms", "ms", "compiled", "Time to compile and warm up", "compile_warm_ms"),
    Metric(
        "tamiyo.gnn.compile_fallback_total",
        "count",
        "above 0",
        "Fallbacks from compiled to eager",
        "compile_fallback_total",
    ),
    Metric("tamiyo.policy.value_estimate", "score", _INFERRED, "The value head's estimate", "value_estimate"),
    Metric("tamiyo.policy.risk_index", "index", _INFERRED, "Likeliest risk class, 0 to 4", "risk_index"),
    Metric(
        "tamiyo.policy.risk_score",
        "score",
        _INFERRED,
        "Expected severity, 0 to 1",
        "risk_score",
        also=("tamiyo.risk.score",),
    ),
    Metric("tamiyo.gnn.feature_coverage", "ratio", "a graph was built", "Mean over the keys", "coverage_average"),
    Metric(
        "tamiyo.gnn.mandatory_coverage",
        "ratio",
        "a graph was built",
        "Mean over the mandatory keys",
        "coverage_mandatory",
    ),
    Metric(
        "tamiyo.gnn.feature_coverage.<type>", "ratio", "a graph was built", "Share that upstream sent, by type"
    ),
    Metric("tamiyo.gnn.bsds_missing", "count", "known", "Blueprints of the graph without a sheet", "bsds_missing"),
    Metric("tamiyo.gnn.bsds_failed", "count", "known", "Blueprints Urabrask could not evaluate", "bsds_failed"),
    Metric(
        "tamiyo.gnn.learned_fallbacks", "count", "known", "Layers with a learned activation", "learned_fallbacks"
    ),
    Metric("tamiyo.gnn.sampled_edges", "count", "known", "Edges left out by the in-degree caps", "sampled_edges"),
    Metric(
        "tamiyo.blending.method_index",
        "enum",
        _BLENDS,
        "Position in the list of methods",
        "blending_method_index",
        attributes=_METHOD,
    ),
    Metric(
        "tamiyo.blending.schedule_start",
        "fraction",
        _BLENDS,
        "Start of the ramp",
        "blending_start",
        attributes=_METHOD,
    ),
    Metric(
        "tamiyo.blending.schedule_end", "fraction", _BLENDS, "End of the ramp", "blending_end", attributes=_METHOD
    ),
    Metric(
        "tamiyo.selection.seed_index", "index", _BLENDS, "Chosen seed, −1 = none", "seed_index", attributes=_METHOD
    ),
    Metric(
        "tamiyo.selection.blueprint_index",
        "index",
        _BLENDS,
        "Chosen kernel, −1 = none",
        "blueprint_index",
        attributes=_METHOD,
    ),
    Metric(
        "tamiyo.selection.seed_score",
        "score",
        _BLENDS,
        "Score of the chosen seed",
        "seed_score",
        attributes=_METHOD,
    ),
    Metric("tamiyo.breaker.<component>_state", "state", EVERY, "1 closed, 2 open, 3 half open"),
    Metric("tamiyo.breaker.<component>_failures", "count", EVERY, "Failures that count towards opening"),
    Metric("tamiyo.blueprint.risk", "score", "a kernel was resolved", "Risk of the kernel", "blueprint_risk"),
    Metric("tamiyo.pause.quota", "count", "known", "Targeted pauses allowed per epoch", "pause_quota"),
    Metric("tamiyo.pause.quota_remaining", "count", "known", "Of these left", "pause_quota_remaining"),
    Metric("tamiyo.field_reports.published_total", "count", "reported", "Published since the last packet"),
    Metric("tamiyo.field_reports.retries_total", "count", "reported", "Tried again since the last packet"),
    Metric("tamiyo.field_reports.dropped_total", "count", "reported", "Given up since the last packet"),
    Metric("tamiyo.field_reports.pending_total", "count", "reported", "Observation windows open"),
    Metric(
        "tamiyo.intake.<outcome>_total", "count", "above 0", "State packets of the run, by what became of them"
    ),
)

#: What only the consolidated packet holds.
HUB_METRICS: tuple[Metric, ...] = (
    Metric(
        "tamiyo.hub.age_ms",
        "ms",
        "the source reported",
        "Age of the source's newest packet",
        attributes=("source",),
    ),
    Metric(
        "tamiyo.hub.stale",
        "bool",
        "the source reported",
        "1 = older than the limit: its values are left out",
        attributes=("source",),
    ),
    Metric("tamiyo.hub.dropped_total", "count", "above 0", "Series and events that did not fit"),
)

#: Names that only design papers have, and why nothing is sent under them.
NOT_SENT: tuple[tuple[str, str], ...] = (
    ("tamiyo.gnn.layer{i}.latency_ms", "the forward pass is one plan, its layers are not timed on the step path"),
    ("tamiyo.training.kl_divergence", "belongs to the training of the policy, which Simic does"),
    ("tamiyo.training.lr", "as above; the run's own learning rate is `tolaria.lr_controller.current_lr`"),
    ("tamiyo.risk.combined_score", "there is one risk score, `tamiyo.policy.risk_score`"),
)

METRICS: tuple[Metric, ...] = STEP_METRICS + HUB_METRICS


def render_reference() -> str:
    """Return the reference page of the metrics on the bus."""
    rows = [_row(metric) for metric in METRICS]
    missing = [f"| `{name}` | {reason} |" for name, reason in NOT_SENT]
    return _PAGE.format(rows="\n".join(rows), missing="\n".join(missing))


def _row(metric: Metric) -> str:
    names = "<br>".join(f"`{name}`" for name in metric.names)
    attributes = ", ".join(f"`{name}`" for name in metric.attributes) or "–"
    return f"| {names} | {metric.unit} | {attributes} | {metric.when} | {metric.meaning} |"


_PAGE = """# Telemetry on the bus

Generated from `tamiyo_stream/hub/taxonomy.py`.

Tamiyo publishes `TelemetryPacket`s on `oona.telemetry`: one with every commit, and per run and interval one
consolidated packet (its id begins with `tamiyo-hub-`) that holds the newest values of Tolaria and Kasmina beside
its own. A packet of HIGH or CRITICAL priority goes to `oona.emergency` and, as a copy, to `oona.telemetry`.
Nothing is sent for a value that is not known; 0 is a value. Names in one row carry the same figure.

| metric | unit | attributes | sent when | meaning |
|---|---|---|---|---|
{rows}

Tolaria's and Kasmina's metrics keep their names (`tolaria.…`, `kasmina.…`); a name without its source's prefix
gets it, times are sent in ms, percentages as ratios, flags as bool.

Named elsewhere and not sent:

| metric | why |
|---|---|
{missing}
"""
