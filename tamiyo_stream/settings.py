"""Configuration of the worker: environment (``TAMIYO_``), TOML file, secrets from files (design §14).

Precedence, highest first: arguments, environment, ``<NAME>_FILE`` secrets, the TOML file named by
``TAMIYO_CONFIG`` (or ``tamiyo.toml`` in the working directory), defaults. Every error names the setting and the
fix.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from schemas.catalogue import Stream
from schemas.partitions import stream_key
from schemas.signing import Keyring
from tamiyo_stream.policy.blending import BlendModeProfile
from tamiyo_stream.policy.breakers import BreakerPolicy
from tamiyo_stream.policy.conservative import ConservativeRules
from tamiyo_stream.policy.facts import PolicyProfile
from tamiyo_stream.policy.thresholds import RiskThresholds
from tamiyo_stream.policy.windows import WindowRules

PREFIX = "TAMIYO_"
DEFAULT_FILE = "tamiyo.toml"
#: Settings whose value may be read from the file that ``TAMIYO_<NAME>_FILE`` names.
SECRETS = ("redis_password", "signing_secret", "signing_previous_secret", "web_token")


class SettingsError(ValueError):
    """The configuration is unusable; the text names each setting, its value and the fix."""


class Settings(BaseSettings):
    """All settings of a worker. Durations carry their unit in the name."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, validate_default=True
    )

    # Bus
    redis_url: Annotated[str, Field(description="redis://, rediss:// or unix:// URL of the Oona bus")] = (
        "redis://127.0.0.1:6379/0"
    )
    redis_username: Annotated[str | None, Field(description="ACL user")] = None
    redis_password: Annotated[SecretStr | None, Field(description="ACL password")] = None
    redis_ca_file: Annotated[Path | None, Field(description="CA bundle for rediss://")] = None
    redis_cert_file: Annotated[Path | None, Field(description="Client certificate for rediss://")] = None
    redis_key_file: Annotated[Path | None, Field(description="Client key for rediss://")] = None
    signing_kid: Annotated[str, Field(description="Id of the key that signs")] = "k1"
    signing_secret: Annotated[SecretStr | None, Field(description="Key that signs and verifies entries")] = None
    signing_previous_kid: Annotated[str, Field(description="Id of the key being rotated out")] = "k0"
    signing_previous_secret: Annotated[SecretStr | None, Field(description="Key that still verifies")] = None
    group: Annotated[str, Field(description="Consumer group")] = "tamiyo"
    worker_id: Annotated[str, Field(description="Consumer name; unique per process")] = ""
    key_prefix: Annotated[str, Field(description="Prefix of the worker's own Redis keys")] = "tamiyo"
    partitions: Annotated[int, Field(ge=1, le=1024, description="Partitions per ordered input")] = 1
    stream_names: Annotated[dict[Stream, str], Field(description="Other names for streams, by default name")] = {}

    # Reading
    claim_count: Annotated[int, Field(ge=1, le=4096, description="Entries per claim")] = 64
    block_ms: Annotated[int, Field(ge=1, le=10_000, description="Longest wait for new entries")] = 200
    lease_ttl_ms: Annotated[int, Field(ge=500, description="Partition lease time")] = 10_000
    min_idle_ms: Annotated[int, Field(ge=100, description="Idle time before entries are taken over")] = 5_000
    max_deliveries: Annotated[
        int, Field(ge=1, le=100, description="Attempts to handle an entry before it goes to the dead letter")
    ] = 5
    reap_idle_s: Annotated[
        int, Field(ge=60, description="Silence after which a consumer that holds nothing is removed")
    ] = 3_600
    input_maxlen: Annotated[
        int, Field(ge=100, description="Entries kept of an ordered input; what is unsettled stays beyond it")
    ] = 100_000

    # Runs
    max_runs: Annotated[int, Field(ge=1, description="Runs held in memory")] = 1024
    snapshot_ttl_s: Annotated[int, Field(ge=60, description="Life of a run's saved state in Redis")] = 7 * 86_400
    var_dir: Annotated[Path, Field(description="Registries and normalisation tables")] = Path("var/tamiyo")
    flush_interval_s: Annotated[float, Field(gt=0, description="Time between flushes of var_dir")] = 10.0

    # Graph
    max_nodes: Annotated[
        int, Field(ge=1, description="Nodes of a graph beyond which the neighbours of a node are capped")
    ] = 100_000
    max_edges: Annotated[
        int, Field(ge=1, description="Edges of a graph, reverses not counted, beyond which they are capped")
    ] = 500_000
    max_graphs_cached: Annotated[int, Field(ge=1, description="Runs whose graph structure is kept")] = 256
    max_graph_bytes: Annotated[
        int, Field(ge=1 << 20, description="Bytes that the kept structures and their buffers may take together")
    ] = 1 << 30

    # Inference
    device: Annotated[str, Field(description="auto, cpu or cuda[:n]")] = "auto"
    executor: Annotated[
        Literal["plan", "reference"],
        Field(description="plan: cached execution plans (CPU); reference: plain network"),
    ] = "plan"
    threads: Annotated[int, Field(ge=1, le=256, description="CPU threads of the network")] = 1
    model_seed: Annotated[int, Field(ge=0, description="Initialisation of the network")] = 0
    checkpoint: Annotated[
        Path | None,
        Field(
            description="Policy to start with, instead of an untrained one; signed where a signing secret is set. "
            "The newest usable update on the policy stream replaces it"
        ),
    ] = None
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        Field(description="auto: bf16 on CUDA, fp32 on the CPU"),
    ] = "auto"
    compile_model: Annotated[
        bool | None, Field(description="Try torch.compile, else go on without it; unset: on CUDA only")
    ] = None
    batch_graphs: Annotated[int, Field(ge=1, description="Graphs per batch")] = 16
    batch_nodes: Annotated[int, Field(ge=1, description="Nodes per batch")] = 200_000
    batch_edges: Annotated[int, Field(ge=1, description="Edges per batch, reverses included")] = 2_000_000
    queue_delay_ms: Annotated[
        float, Field(ge=0, description="How long the first graph of a batch waits for company while nothing runs")
    ] = 0.0
    max_queued: Annotated[int, Field(ge=1, description="Graphs that may wait for the network")] = 1024

    # Hot swap of policies
    shadow_graphs: Annotated[
        int, Field(ge=0, description="Graphs on which a new policy is compared with the old one before it decides")
    ] = 16
    canary_share: Annotated[
        float, Field(gt=0, le=1, description="Share of the runs that a new policy answers until it is promoted")
    ] = 1.0
    trial_decisions: Annotated[
        int,
        Field(ge=0, description="Decisions of a new policy until it is promoted; till then it may be taken back"),
    ] = 100
    trial_error_share: Annotated[
        float, Field(ge=0, le=1, description="Share of them that may fail where the old policy could answer")
    ] = 0.02
    trial_late_share: Annotated[
        float, Field(ge=0, le=1, description="Share of them that may be late beyond what was late before")
    ] = 0.05

    # Decisions
    lr_change_max: Annotated[
        float, Field(gt=0, le=0.5, description="Largest relative learning-rate change per command")
    ] = 0.1
    execution_deadline_ms: Annotated[
        int, Field(ge=1, description="A command older than this must not be executed")
    ] = 60_000

    decision_deadline_ms: Annotated[
        float, Field(gt=0, description="Budget of a decision, from the claim of its packet to its commit")
    ] = 45.0
    risk: Annotated[RiskThresholds, Field(description="Where each rule of the risk table begins to fire")] = (
        RiskThresholds()
    )
    conservative: Annotated[ConservativeRules, Field(description="When conservative mode may be left")] = (
        ConservativeRules()
    )
    breaker: Annotated[BreakerPolicy, Field(description="When the inference breaker opens and tries again")] = (
        BreakerPolicy()
    )
    windows: Annotated[WindowRules, Field(description="How long a command's effect is observed")] = WindowRules()
    blend_mode: Annotated[BlendModeProfile, Field(description="How a seed's and its host's tensors mix")] = (
        BlendModeProfile()
    )
    pause_quota: Annotated[int, Field(ge=0, description="Targeted pauses per epoch and run")] = 10

    # Output retention, entries (approximate trimming)
    commands_maxlen: Annotated[int, Field(ge=100, description="Entries kept of the commands")] = 100_000
    reports_maxlen: Annotated[int, Field(ge=100, description="Entries kept of the field reports")] = 100_000
    emergency_maxlen: Annotated[int, Field(ge=100, description="Entries kept of the emergency stream")] = 10_000
    telemetry_maxlen: Annotated[int, Field(ge=100, description="Entries kept of the telemetry")] = 100_000
    dead_letter_maxlen: Annotated[int, Field(ge=100, description="Entries kept of the dead letter")] = 100_000

    # Telemetry, health, panel
    web_host: Annotated[str, Field(description="Address of the panel, health and metrics; empty = none")] = (
        "127.0.0.1"
    )
    web_port: Annotated[int, Field(ge=0, le=65535, description="Its port; 0 = any free one, said in the log")] = (
        8787
    )
    web_token: Annotated[SecretStr | None, Field(description="Token of the panel; required beyond loopback")] = (
        None
    )
    telemetry_interval_s: Annotated[
        float, Field(gt=0, description="Time between consolidated telemetry packets of a run")
    ] = 10.0
    prometheus: Annotated[bool, Field(description="Serve /metrics")] = True
    otlp_endpoint: Annotated[str, Field(description="OpenTelemetry collector, as http://collector:4318")] = ""
    otlp_interval_s: Annotated[float, Field(gt=0, description="Time between exports to it")] = 15.0
    trace_sampled: Annotated[
        float, Field(ge=0, le=1, description="Share of the steps whose spans are exported")
    ] = 0.1
    stage_limit_s: Annotated[
        float, Field(gt=0, description="Silence of a stage, or age of a step in flight, at which /livez fails")
    ] = 30.0

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="Least severe line that is logged")
    ] = "info"
    log_json: Annotated[bool, Field(description="JSON lines instead of text")] = False

    @field_validator("worker_id")
    @classmethod
    def _name_worker(cls, value: str) -> str:
        return value or f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic calls by keyword
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources of the module docstring, highest precedence first."""
        path = Path(os.environ.get(PREFIX + "CONFIG", DEFAULT_FILE))
        toml = TomlConfigSettingsSource(settings_cls, toml_file=path)
        return init_settings, env_settings, _SecretFiles(settings_cls), toml

    @property
    def keyring(self) -> Keyring | None:
        """Active signing keys; None where no secret is configured."""
        if self.signing_secret is None:
            return None
        keys = {self.signing_kid: self.signing_secret.get_secret_value().encode()}
        if self.signing_previous_secret is not None:
            keys[self.signing_previous_kid] = self.signing_previous_secret.get_secret_value().encode()
        return Keyring(keys)

    @property
    def policy_profile(self) -> PolicyProfile:
        """What is set of the decision core."""
        return PolicyProfile(
            thresholds=self.risk,
            conservative=self.conservative,
            blend_mode=self.blend_mode,
            breaker=self.breaker,
            windows=self.windows,
            pause_quota=self.pause_quota,
        )

    def key(self, stream: Stream, partition: int = 0) -> str:
        """Return the Redis key of ``stream`` (of one of its partitions)."""
        return stream_key(
            stream,
            name=self.stream_names.get(stream),
            partition=partition,
            partitions=self.partitions,
        )

    def maxlen(self, stream: Stream) -> int:
        """Return how many entries of an output are kept."""
        return {
            Stream.COMMANDS: self.commands_maxlen,
            Stream.REPORTS: self.reports_maxlen,
            Stream.EMERGENCY: self.emergency_maxlen,
            Stream.TELEMETRY: self.telemetry_maxlen,
            Stream.DEAD_LETTER: self.dead_letter_maxlen,
        }[stream]

    def redacted(self) -> dict[str, Any]:
        """Return the effective configuration without secrets, for the log."""
        values: dict[str, Any] = self.model_dump(mode="json")
        values["redis_url"] = _without_password(self.redis_url)
        return values


class _SecretFiles(PydanticBaseSettingsSource):
    """Reads ``TAMIYO_<SECRET>_FILE``: the content of the named file, stripped of the final newline."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        path = os.environ.get(f"{PREFIX}{field_name.upper()}_FILE")
        if field_name not in SECRETS or not path:
            return None, field_name, False
        try:
            return Path(path).read_text(encoding="utf-8").rstrip("\r\n"), field_name, False
        except OSError as error:
            raise SettingsError(
                f"{PREFIX}{field_name.upper()}_FILE: cannot read {path}: {error.strerror}; mount the secret there"
            ) from None

    def __call__(self) -> dict[str, Any]:
        found = {name: self.get_field_value(FieldInfo(), name)[0] for name in SECRETS}
        return {name: value for name, value in found.items() if value is not None}


def load_settings(**overrides: Any) -> Settings:
    """Return the effective settings; ``overrides`` win over every source.

    Raises:
        SettingsError: naming every setting that is wrong, its value and what is accepted.
    """
    path = os.environ.get(PREFIX + "CONFIG")
    if path and not Path(path).is_file():
        raise SettingsError(f"{PREFIX}CONFIG: no such file: {path}; correct the path or unset it")
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise SettingsError("\n".join(_describe(item) for item in error.errors())) from None
    except ValueError as error:  # TOML syntax, unreadable secrets
        raise SettingsError(str(error)) from None


def render_reference() -> str:
    """Return the configuration reference page: one row per setting, from the declarations above."""
    rows = [row for name, field in Settings.model_fields.items() for row in _rows(name, field)]
    secrets = ", ".join(f"`{PREFIX}{name.upper()}`" for name in SECRETS)
    return (
        _REFERENCE_HEAD.format(config=f"{PREFIX}CONFIG", file=DEFAULT_FILE, secrets=secrets)
        + "\n".join(rows)
        + "\n"
    )


_REFERENCE_HEAD = """# Configuration

Generated by `tamiyo-stream config reference`. Precedence, highest first: environment, secret files, the TOML file
that `{config}` names (or `{file}` in the working directory; keys without the prefix, in lower case), defaults.
{secrets} may also come from the file that `<NAME>_FILE` names.

| setting | default | meaning |
|---|---|---|
"""


def _rows(name: str, field: FieldInfo) -> list[str]:
    """Return the page's rows for one setting: one, or one per part of a group."""
    if not is_dataclass(field.default):
        return [f"| `{PREFIX}{name.upper()}` | {_default_text(name, field)} | {field.description or ''} |"]
    return [
        f"| `{PREFIX}{name.upper()}__{part.name.upper()}` | `{getattr(field.default, part.name)}` | "
        f"{field.description}: {part.name.replace('_', ' ')}{_unit(part.metadata)} |"
        for part in fields(field.default)
    ]


def _unit(metadata: Mapping[str, Any]) -> str:
    unit = metadata.get("unit", "1")
    return "" if unit == "1" else f", {unit}"


def _default_text(name: str, field: FieldInfo) -> str:
    if name == "worker_id":
        return "host, process id and a random part"
    return "unset" if field.default is None else f"`{field.default}`"


def _describe(item: Any) -> str:
    location = [str(part) for part in item["loc"]]
    name = PREFIX + "__".join(location).upper() if location else "settings"
    if item["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
        return f"{name}: no such setting; see docs/reference/configuration.md"
    secret = location and location[0] in SECRETS
    given = "" if secret or not location else f" (given: {item['input']!r})"
    return f"{name}: {item['msg']}{given}"


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    credentials, at, host = rest.rpartition("@")
    if not at:
        return url
    user = credentials.partition(":")[0]
    return f"{scheme}{separator}{user}:***@{host}"
