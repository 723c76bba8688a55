"""The requirement walk: every feature and edge attribute that the requirements list is a row of the tables.

The lists are written out in the words of the documents, each with its place, and with the channel or attribute
that answers it; the reverse holds too: what is in the tables without being asked for has a reason here.
"""

from __future__ import annotations

import pytest

from schemas.enums import BLENDING_METHODS
from tamiyo_stream.graph.features import NODES, Kind, Total, Transform
from tamiyo_stream.graph.relations import BY_EDGE_TYPE, EDGE_TYPES, RELATIONS
from tamiyo_stream.runs.norms import PRIORS

SCHEMA_DEFINITION = "000, Detailed Coding Tasks 1, Graph Schema Definition"
QUICK_REFERENCE = "000, Quick-reference schema"
STEP_TO_GRAPH = "000, Step-to-Graph Encoding Execution Plan"
FULL_REFERENCE = "000, Full WP1 Hetero-GNN Reference"
INPUTS_NODES = "002, 2 Node Feature Requirements"
INPUTS_EDGES = "002, 3 Edge Relations and Attributes"
APPENDIX_B2 = "domain brief, Appendix B2"

#: (place, node type) -> words of the document -> channels, or the relation that the words ask for.
NODE_LISTS: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {
    (SCHEMA_DEFINITION, "layer"): {
        "layer_type": ("layer_type",),
        "input_channels": ("input_channels",),
        "output_channels": ("output_channels",),
        "activation_type": ("activation_type",),
        "dropout_rate": ("dropout_rate",),
        "weight_norm": ("weight_norm",),
        "gradient_norm": ("gradient_norm",),
        "update_frequency": ("update_frequency",),
    },
    (SCHEMA_DEFINITION, "seed"): {
        "seed_id": ("seed_id",),
        "monitoring_scope": ("monitoring_scope",),
        "activity_level": ("activity_level",),
        "success_rate": ("success_rate",),
        "risk_tolerance": ("risk_tolerance",),
        "specialization": ("specialization",),
        "lifecycle_stage": ("lifecycle_stage",),
    },
    (SCHEMA_DEFINITION, "activation"): {
        "activation_type": ("activation_type",),
        "saturation_rate": ("saturation_rate",),
        "gradient_flow": ("gradient_flow",),
        "computational_cost": ("computational_cost",),
    },
    (SCHEMA_DEFINITION, "parameter"): {
        "parameter_count": ("parameter_count",),
        "learning_rate": ("learning_rate",),
        "momentum": ("momentum",),
        "gradient_variance": ("gradient_variance",),
    },
    (QUICK_REFERENCE, "layer"): {
        "`layer_type` (enum → embedding 32-d)": ("layer_type",),
        "`input_channels`": ("input_channels",),
        "`output_channels`": ("output_channels",),
        "`activation_type` (enum)": ("activation_type",),
        "`dropout_rate`": ("dropout_rate",),
        "`weight_norm`": ("weight_norm",),
        "`gradient_norm`": ("gradient_norm",),
        "`update_frequency`": ("update_frequency",),
        "plus per-step metrics (`loss`": ("step_loss",),
        "`gradient_norm`, `samples_per_s`": ("step_gradient_norm", "step_samples_per_s"),
        "`hook_latency_ms`) normalised via EWMA table": ("step_hook_latency_ms",),
    },
    (QUICK_REFERENCE, "seed"): {
        "`seed_id` (registry)": ("seed_id",),
        "`monitoring_scope`": ("monitoring_scope",),
        "`activity_level`": ("activity_level",),
        "`success_rate`": ("success_rate",),
        "`risk_tolerance`": ("risk_tolerance",),
        "`specialization` (enum)": ("specialization",),
        "`lifecycle_stage`": ("lifecycle_stage",),
        "`alpha`": ("alpha",),
        "`risk_score`": ("risk_score",),
        "`allowed_blending_methods` (multi-hot 4-dim)": ("allowed_blending_methods",),
    },
    (QUICK_REFERENCE, "activation"): {
        "`activation_type`": ("activation_type",),
        "`saturation_rate`": ("saturation_rate",),
        "`gradient_flow`": ("gradient_flow",),
        "`computational_cost`": ("computational_cost",),
        "fallback to learned embedding per blueprint": ("fallback_layer_type",),
    },
    (QUICK_REFERENCE, "parameter"): {
        "`parameter_count` (log scaled)": ("parameter_count",),
        "`learning_rate`": ("learning_rate",),
        "`momentum`": ("momentum",),
        "`gradient_variance`": ("gradient_variance",),
        "`optimizer_family` (enum)": ("optimizer_family",),
    },
    (STEP_TO_GRAPH, "seed"): {
        "`stage`": ("lifecycle_stage",),
        "`quarantine_only`": ("quarantine_only",),
        "`alpha`": ("alpha",),
        "`risk`": ("risk_score",),
        "`policy_version`": ("policy_version",),
        "`alpha_schedule`": ("alpha_schedule", "schedule_start", "schedule_end"),
        "`allowed_blending_methods` once exported": ("allowed_blending_methods",),
        "seed_states.monitored_layers": ("seed", "monitors", "layer"),
        "`seed→parameter` or `seed→blending_method` edges": ("seed", "allowed", "parameter"),
    },
    (STEP_TO_GRAPH, "activation"): {
        "use default vector learned per layer type": ("fallback_layer_type",),
    },
    (FULL_REFERENCE, "layer"): {
        "structural telemetry": ("weight_norm", "update_frequency"),
        "per-step loss/gradient metrics": ("step_loss", "step_gradient_norm"),
        "adjacency hints": ("depth",),
        "categorical embeddings for `layer_type`/`activation`": ("layer_type", "activation_type"),
        "gradient norm, samples/sec, latency": ("gradient_norm", "step_samples_per_s", "latency_ms"),
    },
    (FULL_REFERENCE, "seed"): {
        "Leyline stage": ("lifecycle_stage",),
        "activity/risk metrics": ("activity_level", "risk_score", "risk_tolerance"),
        "specialization": ("specialization",),
        "Registry-based embeddings for `seed_id`": ("seed_id",),
        "blending capability masks": ("allowed_blending_methods",),
        "Tolaria-provided success bands": ("success_rate",),
    },
    (FULL_REFERENCE, "activation"): {
        "saturation": ("saturation_rate",),
        "gradient flow": ("gradient_flow",),
        "compute cost": ("computational_cost",),
        "learned fallbacks when Urza omits values": ("fallback_layer_type",),
    },
    (FULL_REFERENCE, "parameter"): {
        "Log-scaled parameter count": ("parameter_count",),
        "learning rate": ("learning_rate",),
        "momentum": ("momentum",),
        "variance": ("gradient_variance",),
        "optimizer family embedding": ("optimizer_family",),
    },
    (INPUTS_NODES, "layer"): {
        "`layer_type`": ("layer_type",),
        "`input_channels`": ("input_channels",),
        "`output_channels`": ("output_channels",),
        "`activation_type`": ("activation_type",),
        "`dropout_rate`": ("dropout_rate",),
        "`weight_norm`": ("weight_norm",),
        "`update_frequency`": ("update_frequency",),
        "normalized `loss`": ("step_loss",),
        "`gradient_norm`": ("gradient_norm", "step_gradient_norm"),
        "`samples_per_s`": ("step_samples_per_s",),
        "`hook_latency_ms`": ("step_hook_latency_ms",),
        "BSDS `risk_score`": ("bsds_risk_score",),
        "`hazard_band`": ("hazard_band",),
        "`handling_class`": ("handling_class",),
        "blueprint `resource_tier`": ("resource_tier",),
        "gradient instability class": ("gradient_instability",),
        "gradient variance (log-scaled)": ("gradient_variance",),
        "latency budget utilisation": ("latency_budget_utilisation",),
    },
    (INPUTS_NODES, "seed"): {
        "`seed_id` registry index": ("seed_id",),
        "`monitoring_scope`": ("monitoring_scope",),
        "`monitored_layers` (converted to adjacency)": ("seed", "monitors", "layer"),
        "lifecycle stage enum": ("lifecycle_stage",),
        "`policy_version` tag": ("policy_version",),
        "`activity_level`": ("activity_level",),
        "`success_rate`": ("success_rate",),
        "`alpha`": ("alpha",),
        "`alpha_schedule` descriptor": ("alpha_schedule", "schedule_start", "schedule_end"),
        "`risk_tolerance`": ("risk_tolerance",),
        "`quarantine_only` flag": ("quarantine_only",),
        "allowed blending methods": ("allowed_blending_methods",),
        "optimizer families": ("optimizer_families",),
        "isolation exemptions": ("isolation_exemptions",),
        "blueprint risk tier currently attached to the seed": ("blueprint_tier",),
        "safe-handling notes": ("safe_handling",),
    },
    (INPUTS_NODES, "activation"): {
        "`activation_type`": ("activation_type",),
        "`saturation_rate`": ("saturation_rate",),
        "`gradient_flow`": ("gradient_flow",),
        "`computational_cost`": ("computational_cost",),
        "(or learned embeddings when blueprint data absent)": ("fallback_layer_type",),
        "saturation events per interval": ("saturation_events",),
        "non-linearity stability score": ("stability",),
    },
    (INPUTS_NODES, "parameter"): {
        "`parameter_count` (`log1p`)": ("parameter_count",),
        "`learning_rate`": ("learning_rate",),
        "`momentum`": ("momentum",),
        "`gradient_variance`": ("gradient_variance",),
        "optimizer family enum": ("optimizer_family",),
        "convergence rate estimate": ("convergence_rate",),
        "update magnitude": ("update_magnitude",),
        "compile status": ("compile_status",),
        "BSDS resource requirement class": ("resource_class",),
        "cooldown recommendations": ("cooldown",),
    },
    (INPUTS_NODES, "context"): {
        "rolling mean loss": ("loss_mean",),
        "throughput": ("throughput_mean",),
        "GPU/CPU utilisation": ("gpu_utilisation", "cpu_utilisation"),
        "Tamiyo conservative-mode flag": ("conservative_mode",),
        "Weatherlight health indicators": ("weatherlight_health",),
        "SLA breach counters": ("sla_breaches",),
    },
    (APPENDIX_B2, "blueprint"): {
        "tier": ("tier",),
        "risk": ("risk",),
        "stage": ("stage",),
        "flags": ("quarantine_only", "approval_required"),
        "candidate score": ("candidate_score",),
        "hazard": ("hazard_band",),
    },
}

#: What :data:`EDGE_LISTS` says of the five relations that two places of 000 list alike.
_RELATIONS_OF_000: dict[str, tuple[tuple[str, str, str], dict[str, tuple[str, ...]]]] = {
    "(`layer`,`connects`,`layer`)": (
        ("layer", "connects", "layer"),
        {
            "`connection_strength`": ("connection_strength",),
            "`data_flow_volume`": ("data_flow_volume",),
            "`latency_ms`": ("latency_ms",),
        },
    ),
    "(`seed`,`monitors`,`layer`)": (
        ("seed", "monitors", "layer"),
        {
            "`monitoring_frequency`": ("monitoring_frequency",),
            "`adaptation_trigger_threshold`": ("adaptation_trigger_threshold",),
        },
    ),
    "(`layer`,`feeds`,`activation`)": (
        ("layer", "feeds", "activation"),
        {
            "`activation_frequency`": ("activation_frequency",),
            "`saturation_events`": ("saturation_events",),
        },
    ),
    "(`activation`,`influences`,`layer`)": (
        ("activation", "influences", "layer"),
        {
            "`gradient_contribution`": ("gradient_contribution",),
            "`nonlinearity_strength`": ("nonlinearity_strength",),
        },
    ),
    "(`parameter`,`tunes`,`layer`)": (
        ("parameter", "tunes", "layer"),
        {
            "`update_magnitude`": ("update_magnitude",),
            "`convergence_rate`": ("convergence_rate",),
        },
    ),
}

#: (place, words of the relation) -> edge type, then words of the document -> attributes.
EDGE_LISTS: dict[tuple[str, str], tuple[tuple[str, str, str], dict[str, tuple[str, ...]]]] = {
    **{
        (place, words): row
        for place in (SCHEMA_DEFINITION, QUICK_REFERENCE)
        for words, row in _RELATIONS_OF_000.items()
    },
    (QUICK_REFERENCE, "(`seed`,`allowed`,`parameter`)"): (
        ("seed", "allowed", "parameter"),
        {"permitted blending/optimizer combos": ("blending_methods", "optimizer_families")},
    ),
    (INPUTS_EDGES, "`layer` ↔ `layer` (`connects`)"): (
        ("layer", "connects", "layer"),
        {
            "`connection_strength`": ("connection_strength",),
            "`data_flow_volume`": ("data_flow_volume",),
            "`latency_ms`": ("latency_ms",),
            "optional `residual_flag`": ("residual_flag",),
        },
    ),
    (INPUTS_EDGES, "`layer` → `activation` (`feeds`/`activates`)"): (
        ("layer", "feeds", "activation"),
        {
            "`activation_frequency`": ("activation_frequency",),
            "`saturation_events`": ("saturation_events",),
        },
    ),
    (INPUTS_EDGES, "`activation` → `layer` (`influences`/`affects`)"): (
        ("activation", "influences", "layer"),
        {
            "`gradient_contribution`": ("gradient_contribution",),
            "`nonlinearity_strength`": ("nonlinearity_strength",),
        },
    ),
    (INPUTS_EDGES, "`activation` → `parameter` (`configures`)"): (
        ("activation", "configures", "parameter"),
        {"link to parameter influence": ("link_weight",)},
    ),
    (INPUTS_EDGES, "`parameter` → `activation` (`modulates`)"): (
        ("parameter", "modulates", "activation"),
        {"magnitude": ("magnitude",), "effect": ("effect",)},
    ),
    (INPUTS_EDGES, "`parameter` → `blueprint` (`targets`)"): (
        ("parameter", "targets", "blueprint"),
        {"categorical target": ("target",)},
    ),
    (INPUTS_EDGES, "`seed` → `layer` (`monitors`)"): (
        ("seed", "monitors", "layer"),
        {
            "`monitoring_frequency`": ("monitoring_frequency",),
            "`adaptation_trigger_threshold`": ("adaptation_trigger_threshold",),
            "`quarantine_flag`": ("quarantine_flag",),
        },
    ),
    (INPUTS_EDGES, "`seed` → `parameter` (`allowed`)"): (
        ("seed", "allowed", "parameter"),
        {"Multi-hot compatibility (blending/optimizer)": ("blending_methods", "optimizer_families")},
    ),
    (INPUTS_EDGES, "Global edges (`context` → `layer`/`seed`), to layers"): (
        ("context", "conditions", "layer"),
        {
            "latency budget utilisation": ("latency_budget_utilisation",),
            "conservative mode": ("conservative_mode",),
        },
    ),
    (INPUTS_EDGES, "Global edges (`context` → `layer`/`seed`), to seeds"): (
        ("context", "conditions", "seed"),
        {
            "latency budget utilisation": ("latency_budget_utilisation",),
            "conservative mode": ("conservative_mode",),
        },
    ),
}

#: Channels that no list asks for, and why they are there.
REASONS: dict[tuple[str, str], str] = {
    (
        "layer",
        "parameter_count",
    ): "asked for of parameter groups; the share that lies in a layer says how large it is",
    ("layer", "data_flow_volume"): "asked for of connects edges; the output of the last layer has no edge",
    ("layer", "loss_contribution"): "000 chooses the layers of a seed without monitored_layers by it",
    ("seed", "gradient_norm"): "field of Leyline's SeedState",
    ("seed", "learning_rate"): "field of Leyline's SeedState",
    ("seed", "layer_depth"): "field of Leyline's SeedState",
    ("seed", "age_epochs"): "field of Leyline's SeedState",
    ("blueprint", "blueprint_id"): "000 extends blueprint_vocab: the embedding of the kernel itself",
    ("blueprint", "handling_class"): "002 §1: the safety sheet's handling class, here of the kernel",
    ("blueprint", "compile_status"): "002 §2 asks for it to inform the action heads; a kernel has one too",
    ("context", "latency_budget_utilisation"): "002 §3 broadcasts it from the context, whose state it is",
}

#: Categories, by the documents' "enum", "registry", "class", "embeddings".
CATEGORIES = {
    "layer": {
        "layer_type",
        "activation_type",
        "gradient_instability",
        "hazard_band",
        "handling_class",
        "resource_tier",
    },
    "seed": {"seed_id", "lifecycle_stage", "specialization", "alpha_schedule", "blueprint_tier", "safe_handling"},
    "activation": {"activation_type", "fallback_layer_type"},
    "parameter": {"optimizer_family", "compile_status", "resource_class"},
    "blueprint": {"blueprint_id", "tier", "hazard_band", "handling_class", "compile_status"},
    "context": set(),
}

NODE_ROWS = [
    pytest.param(node_type, targets, id=f"{place}: {node_type} {words}")
    for (place, node_type), features in NODE_LISTS.items()
    for words, targets in features.items()
]
EDGE_ROWS = [
    pytest.param(edge_type, targets, id=f"{place}: {relation} {words}")
    for (place, relation), (edge_type, attributes) in EDGE_LISTS.items()
    for words, targets in attributes.items()
]


@pytest.mark.parametrize(("node_type", "targets"), NODE_ROWS)
def test_the_feature_is_in_the_table(node_type, targets):
    if targets in BY_EDGE_TYPE:
        assert node_type in targets
        return
    assert set(targets) <= {channel.name for channel in NODES[node_type].channels}


@pytest.mark.parametrize(("edge_type", "targets"), EDGE_ROWS)
def test_the_edge_attribute_is_in_the_table(edge_type, targets):
    assert set(targets) <= {attribute.name for attribute in BY_EDGE_TYPE[edge_type].attributes}


def test_every_channel_is_asked_for_or_has_a_reason():
    asked = {
        (node_type, name)
        for (_, node_type), features in NODE_LISTS.items()
        for targets in features.values()
        if targets not in BY_EDGE_TYPE
        for name in targets
    }
    declared = {(node_type, channel.name) for node_type, schema in NODES.items() for channel in schema.channels}
    assert asked | set(REASONS) == declared
    assert not asked & set(REASONS)


def test_every_edge_attribute_is_asked_for():
    asked = {
        (edge_type, name) for edge_type, lists in EDGE_LISTS.values() for row in lists.values() for name in row
    }
    assert asked == {(relation.edge_type, a.name) for relation in RELATIONS for a in relation.attributes}


def test_every_relation_has_its_forward_and_reverse_edge_type():
    asked = {edge_type for edge_type, _ in EDGE_LISTS.values()}
    reverses = {BY_EDGE_TYPE[edge_type].reverse_type for edge_type in asked}
    assert asked | reverses == set(EDGE_TYPES)
    assert not asked & reverses


def test_other_names_of_a_relation_are_its_aliases():
    assert "activates" in BY_EDGE_TYPE["layer", "feeds", "activation"].aliases
    assert "affects" in BY_EDGE_TYPE["activation", "influences", "layer"].aliases


def test_widths_are_the_feature_budgets():
    assert {name: (schema.raw_width, schema.encoded_width) for name, schema in NODES.items()} == {
        "layer": (128, 256), "seed": (64, 256), "activation": (32, 128), "parameter": (16, 256),
        "blueprint": (16, 256), "context": (16, 256),
    }  # fmt: skip


def test_layer_type_is_a_32_wide_embedding():
    assert NODES["layer"].channel("layer_type").width == 32


def test_seed_enums_have_tables_of_64_rows():
    for name in ("lifecycle_stage", "specialization", "alpha_schedule"):
        assert NODES["seed"].channel(name).capacity == 64


@pytest.mark.parametrize("node_type", NODES)
def test_enums_and_registry_values_are_embedded_categories(node_type):
    assert {channel.name for channel in NODES[node_type].categories} == CATEGORIES[node_type]


def test_blending_methods_are_a_multi_hot_of_the_four_in_the_order_of_the_requirements():
    channel = NODES["seed"].channel("allowed_blending_methods")
    slot = NODES["seed"].slots[channel.name]
    assert (channel.kind, slot.stop - slot.start) == (Kind.MULTI_HOT, 4)
    assert channel.labels == BLENDING_METHODS == ("linear", "cosine", "warmup_hold", "sigmoid")


@pytest.mark.parametrize("node_type", NODES)
def test_every_value_that_may_be_missing_has_a_mask_and_a_categorys_is_its_index_0(node_type):
    schema = NODES[node_type]
    without = {channel.name for channel in schema.channels} - set(schema.mask_slots)
    known = {"conservative_mode"} if node_type == "context" else set()  # the worker's own state
    assert without == CATEGORIES[node_type] | known


@pytest.mark.parametrize("metric", ["loss", "gradient_norm", "samples_per_s", "hook_latency_ms"])
def test_step_metrics_are_normalised_by_the_ewma_table_and_masked_one_by_one(metric):
    layer = NODES["layer"]
    channel = layer.channel(f"step_{metric}")
    assert (channel.transform, channel.prior, channel.default) == (Transform.EWMA, metric, 0.0)
    sharing = [name for name, slot in layer.mask_slots.items() if slot == layer.mask_slots[channel.name]]
    assert sharing == [channel.name]


@pytest.mark.parametrize(
    ("name", "transform"),
    [
        ("parameter_count", Transform.LOG1P_Z),
        ("learning_rate", Transform.LOG1P_Z),
        ("gradient_variance", Transform.LOG1P_Z),
        ("momentum", Transform.Z),
    ],
)
def test_blueprint_fields_are_log_scaled_and_z_scored_but_momentum_is_not_log_scaled(name, transform):
    channel = NODES["parameter"].channel(name)
    assert (channel.transform, channel.prior) == (transform, name)
    assert PRIORS[name].log1p == (transform is Transform.LOG1P_Z)


@pytest.mark.parametrize(
    "name", ["activity_level", "success_rate", "risk_score", "risk_tolerance", "monitoring_scope"]
)
def test_seed_statistics_are_clamped_and_default_to_a_half(name):
    channel = NODES["seed"].channel(name)
    assert (channel.transform, channel.default) == (Transform.CLAMP01, 0.5)


def test_capabilities_without_named_positions_are_flags():
    """002 asks for a multi-hot of isolation exemptions, and no document names one of them."""
    assert NODES["seed"].channel("isolation_exemptions").kind is Kind.FLAG


def test_nothing_but_seed_statistics_has_a_default_other_than_zero():
    others = {(t, c.name) for t, schema in NODES.items() for c in schema.channels if c.default and t != "seed"}
    assert others == set()


def test_flow_is_a_share_of_the_graphs_largest_and_strength_of_the_largest_fan_out():
    attributes = {a.name: a.total for a in BY_EDGE_TYPE["layer", "connects", "layer"].attributes}
    assert attributes["connection_strength"] is Total.FAN_OUT
    assert attributes["data_flow_volume"] is attributes["latency_ms"] is Total.MAX
