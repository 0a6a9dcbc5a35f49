"""The agent's settings: one YAML file, each setting also an environment variable. Values in, checked values out.

    root: /var/lib/weightyard
    budget: 80%
    floor: 10%
    tiers:
      order: [shared, registry, hub]
      shared:
        - s3: {bucket: models, prefix: cache, endpoint: "http://minio:9000"}
        - directory: /mnt/shared/weightyard
      mirrors:
        docker.io: [mirror.eu.example, mirror.us.example]

`json_schema()` describes the file. Secrets aren't in it: S3 keys and hub tokens come from where boto3 and
huggingface_hub look for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from cache_agent.addresses import Address
from cache_agent.store.space import Amount
from modelimage.errors import InvalidInput, WeightyardError

PREFIX = "WEIGHTYARD_"


def _amount(text: str) -> str:
    try:
        Amount.parse(text)
    except WeightyardError as error:
        raise ValueError(error.message) from error
    return text


AmountText = Annotated[str, AfterValidator(_amount)]
TierName = Literal["shared", "registry", "hub"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FetchSection(_Section):
    """How files are fetched. Rates are bytes per second (100MB), 0 for no cap."""

    streams: int = Field(default=4, ge=1, le=64)
    stall_seconds: float = Field(default=10.0, gt=0)
    bandwidth: AmountText = "0"
    bandwidth_per_source: AmountText = "0"


class MaintenanceSection(_Section):
    """How the store is kept sound. `scrub_days` 0 turns scrubbing off."""

    scrub_days: float = Field(default=7.0, ge=0)
    scrub_rate: AmountText = "50MB"
    interval_seconds: float = Field(default=30.0, gt=0)


class S3Section(_Section):
    """A bucket that the cluster shares."""

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None


class SharedSection(_Section):
    """One shared place: a bucket or a mounted directory."""

    s3: S3Section | None = None
    directory: Path | None = None

    @model_validator(mode="after")
    def _one_of(self) -> SharedSection:
        if (self.s3 is None) == (self.directory is None):
            raise ValueError("give either s3 or directory")
        return self


class HubSection(_Section):
    """The Hub as the last resort, for files as they were published."""

    endpoint: str = "https://huggingface.co"


class TierSection(_Section):
    """Where files come from, in which order. A tier that `order` leaves out is off.

    `memory_budget` caps what is kept in memory on request; 0 means what the machine has available.
    """

    order: tuple[TierName, ...] = ("shared", "registry", "hub")
    shared: tuple[SharedSection, ...] = ()
    write_back: bool = True
    memory_budget: AmountText = "0"
    mirrors: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    hub: HubSection = Field(default_factory=HubSection)

    @model_validator(mode="after")
    def _once(self) -> TierSection:
        if len(set(self.order)) != len(self.order):
            raise ValueError("a tier is named twice")
        return self


def _address(text: str) -> str:
    try:
        Address.parse(text)
    except WeightyardError as error:
        raise ValueError(error.message) from error
    return text


AddressText = Annotated[str, AfterValidator(_address)]


class CsiSection(_Section):
    """The CSI driver: kubelet's directory, at the same path as on the host, and the mounter's socket."""

    kubelet: Path = Path("/var/lib/kubelet")
    mounter: Path


class FacesSection(_Section):
    """What pods and container runtimes talk to. An address is PORT, on loopback, or HOST:PORT.

    `registries` are the hosts that pods may name; none means the well-known public ones. `hub_images` are patterns of
    image repositories (`registry.example/models/*`) that are believed in which Hub repository they came from. `observe`
    answers /livez, /readyz and /metrics, and nothing else.
    """

    mirror: AddressText | None = None
    registries: tuple[str, ...] = ()
    hub: AddressText | None = None
    hub_upstream: str = "https://huggingface.co"
    hub_images: tuple[str, ...] = ()
    observe: AddressText | None = None
    csi: CsiSection | None = None


class AgentConfig(_Section):
    """Everything that can be set. `budget` and `floor` hold for `root` and for each of `more_roots`."""

    root: Path | None = None
    more_roots: tuple[Path, ...] = ()
    port: int | None = Field(default=None, ge=0, le=65535)
    budget: AmountText = "100%"
    floor: AmountText = "5%"
    fetch: FetchSection = Field(default_factory=FetchSection)
    maintenance: MaintenanceSection = Field(default_factory=MaintenanceSection)
    tiers: TierSection = Field(default_factory=TierSection)
    faces: FacesSection = Field(default_factory=FacesSection)


def json_schema() -> dict[str, Any]:
    """The JSON schema of the settings file."""
    return AgentConfig.model_json_schema()


def parse_config(
    text: str, environ: Mapping[str, str], overrides: Mapping[str, Any]
) -> AgentConfig:
    """Settings from the file's text, overridden by the environment, overridden by flags. Raises InvalidInput.

    `WEIGHTYARD_FETCH__STREAMS=8` sets `fetch.streams`; its value is YAML. `overrides` has dotted names; None is unset.
    """
    document = _document(text)
    for name, value in sorted(environ.items()):
        path = name.removeprefix(PREFIX).lower().split("__")
        if name.startswith(PREFIX) and path[0] in AgentConfig.model_fields:
            _set(document, path, _yaml(value, name))
    for dotted, value in overrides.items():
        if value is not None:
            _set(document, dotted.split("."), value)
    try:
        return AgentConfig.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidInput(
            f"settings: {where}: {first['msg']}", hint="See `weightyard agent --print-schema`."
        ) from error


def _document(text: str) -> dict[str, Any]:
    document = _yaml(text, "the settings file") if text.strip() else {}
    if not isinstance(document, dict):
        raise InvalidInput("the settings file isn't a YAML mapping")
    return document


def _yaml(text: str, what: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidInput(f"{what} is not valid YAML: {error}") from error


def _set(document: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        inner = document.get(name)
        document[name] = document = dict(inner) if isinstance(inner, Mapping) else {}
    document[path[-1]] = value
