"""The agent's settings: one YAML file, each setting also an environment variable; `settings_file` reads it.

    root: /var/lib/weightyard
    budget: 80%
    min_free: 10%
    tiers:
      order: [peer, shared, registry, hub]
      shared:
        - s3: {bucket: models, prefix: cache, endpoint: "http://minio:9000"}
        - directory: /mnt/shared/weightyard
      mirrors:
        docker.io: [mirror.eu.example, mirror.us.example]

`json_schema()` describes the file, which has no secrets: boto3 and huggingface_hub look up S3 keys and Hub tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from cache_agent.net.listen_addresses import Address
from cache_agent.store.space import Amount
from modelimage.errors import WeightyardError
from modelimage.hub import DEFAULT_ENDPOINT


def _text(value: Any) -> Any:
    """Accept numbers as text: YAML parses 0 and 5000 as integers."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _amount(text: str) -> str:
    try:
        Amount.parse(text)
    except WeightyardError as error:
        raise ValueError(error.message) from error
    return text


AmountText = Annotated[str, BeforeValidator(_text), AfterValidator(_amount)]


def _path(value: Any) -> Any:
    """Refuse an empty path, as of a variable that isn't set: it would be the working directory."""
    if value == "":
        raise ValueError("expected a path, not an empty text")
    return value


FilePath = Annotated[Path, BeforeValidator(_path)]
TierName = Literal["peer", "shared", "registry", "hub"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class FetchSection(_Section):
    """Settings of fetching. Rates in bytes per second (100MB); 0: no cap."""

    streams: int = Field(
        default=4, ge=1, le=64, description="Maximum number of concurrent transfers."
    )
    stall_seconds: float = Field(
        default=10.0, gt=0, description="Switch sources after this many seconds without data."
    )
    slow_rate: AmountText = Field(
        default="1MB",
        description="Below this rate, in bytes per second, try another source. 0: never.",
    )
    bandwidth: AmountText = Field(
        default="0", description="Limit for all transfers, in bytes per second: 100MB. 0: none."
    )
    bandwidth_per_source: AmountText = Field(
        default="0",
        description="Limit for the transfers from one source, in bytes per second. 0: none.",
    )


class MaintenanceSection(_Section):
    """Settings of the store's maintenance: scrubs, leases, copies to the shared store."""

    scrub_days: float = Field(
        default=7.0,
        ge=0,
        description="Days between two verifications of each stored file. 0: never.",
    )
    scrub_rate: AmountText = Field(
        default="50MB",
        description="Limit for reads by scrubs and copies to shared stores, in bytes per second.",
    )


class S3Section(_Section):
    """An S3 bucket as the cluster's shared store."""

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None


class SharedSection(_Section):
    """One shared store: exactly one of `s3` and `directory`."""

    s3: S3Section | None = None
    directory: FilePath | None = None

    @model_validator(mode="after")
    def _one_of(self) -> SharedSection:
        if (self.s3 is None) == (self.directory is None):
            raise ValueError("set either s3 or directory")
        return self


class HubSection(_Section):
    """The Hub: a source of files as published, by default the last one, and what the Hub endpoint proxies."""

    endpoint: str = Field(
        default=DEFAULT_ENDPOINT,
        description="The Hub's URL; the variable HF_ENDPOINT overrides it.",
    )


class TierSection(_Section):
    """The tiers that files are fetched from, in order."""

    order: tuple[TierName, ...] = Field(
        default=("peer", "shared", "registry", "hub"),
        description="Tiers to fetch from, in this order; a tier that isn't listed is off.",
    )
    shared: tuple[SharedSection, ...] = Field(
        default=(), description="A shared store: {directory: DIR} or {s3: {bucket: NAME, ...}}."
    )
    populate_shared: bool = Field(
        default=True, description="Copy missing files to the shared stores, once per cluster."
    )
    memory_budget: AmountText = Field(
        default="0",
        description="Maximum size of the memory tier. 0: the machine's available memory.",
    )
    mirrors: Mapping[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="Mirrors of registries, nearest first: {docker.io: [mirror.example]}.",
    )
    hub: HubSection = Field(default_factory=HubSection)

    @model_validator(mode="after")
    def _once(self) -> TierSection:
        if len(set(self.order)) != len(self.order):
            raise ValueError("a tier is listed twice")
        return self


def _address(text: str) -> str:
    try:
        Address.parse(text)
    except WeightyardError as error:
        raise ValueError(error.message) from error
    return text


AddressText = Annotated[str, BeforeValidator(_text), AfterValidator(_address)]


class CsiSection(_Section):
    """The CSI driver: kubelet's directory, mounted at the same path as on the host, and the mounter's socket."""

    kubelet: FilePath = Field(
        default=Path("/var/lib/kubelet"),
        description="kubelet's directory, mounted at the same path as on the host.",
    )
    mounter: FilePath = Field(description="Unix socket of the mounter.")


class ServersSection(_Section):
    """The servers for pods and container runtimes. An address is PORT, on loopback, or HOST:PORT."""

    mirror: AddressText | None = Field(
        default=None, description="Serve a registry mirror for container runtimes at [HOST:]PORT."
    )
    registries: tuple[str, ...] = Field(
        default=(),
        description="A registry that models may come from; by default the well-known public ones.",
    )
    hub: AddressText | None = Field(
        default=None,
        description="Serve the Hugging Face Hub's API from the cache (HF_ENDPOINT) at [HOST:]PORT.",
    )
    hub_images: tuple[str, ...] = Field(
        default=(),
        description="Image repositories (registry.example/models/*) trusted to state their Hub origin.",
    )
    observe: AddressText | None = Field(
        default=None,
        description="Serve /livez, /readyz and /metrics at [HOST:]PORT.",
    )
    csi: CsiSection | None = None


class PeerSection(_Section):
    """A peer by its address, HOST:PORT, which is also its name, and its zone."""

    address: AddressText
    zone: str = ""


class PeerTlsSection(_Section):
    """PEM files for mutual TLS between peers. With TLS, private models are shared too."""

    ca: FilePath = Field(description="PEM file of the CA that issued the peers' certificates.")
    certificate: FilePath = Field(description="PEM file of this node's certificate.")
    key: FilePath = Field(description="PEM file of this node's private key.")
    name: str | None = Field(
        default=None, description="DNS name that each peer's certificate must have."
    )


class PeersSection(_Section):
    """Settings of the peer tier. Members are listed, found by DNS, or both."""

    listen: AddressText = Field(description="HOST:PORT to serve other nodes at.")
    advertise: AddressText | None = Field(
        default=None,
        description="HOST:PORT at which other nodes reach this one; by default `listen`.",
    )
    members: tuple[PeerSection, ...] = Field(
        default=(), description='A peer: {address: "HOST:PORT", zone: ZONE}; may be this node.'
    )
    dns: AddressText | None = Field(
        default=None, description="NAME:PORT; every address that NAME resolves to is a peer."
    )
    key_file: FilePath = Field(
        description="File with the shared keys, one per line; the first one signs."
    )
    tls: PeerTlsSection | None = None
    zone: str = Field(
        default="", description="This node's zone; by default the zone label of its Node."
    )
    zones: Literal["share", "apart"] = Field(
        default="share",
        description="share: one copy for all zones. apart: each zone fetches its own.",
    )
    upload: AmountText = Field(
        default="0", description="Limit for sending to other nodes, in bytes per second. 0: none."
    )
    uploads: int = Field(
        default=32, ge=1, le=4096, description="Maximum number of chunks sent concurrently."
    )
    stall_seconds: float = Field(
        default=10.0,
        gt=0,
        description="Stop waiting for a peer after this many seconds without progress.",
    )

    def name(self) -> str:
        """This node's name among its peers: the address they reach it at."""
        return str(Address.parse(self.advertise or self.listen))

    @model_validator(mode="after")
    def _reachable(self) -> PeersSection:
        if not self.members and self.dns is None:
            raise ValueError("set members or dns")
        if Address.parse(self.name()).host in ("0.0.0.0", "::"):  # noqa: S104 - refused
            raise ValueError("set advertise to the address at which other nodes reach this one")
        return self


class SignatureSection(_Section):
    """A rule for images that must be signed."""

    images: str = Field(
        description="Pattern of repositories, `registry.example/team/*`; `*` means all."
    )
    keys: tuple[FilePath, ...] = Field(
        min_length=1, description="PEM files of public keys; a signature by any of them is enough."
    )


class PrewarmSection(_Section):
    """Settings of pre-warming: where the desired models come from, and limits for fetching them."""

    path: FilePath | None = Field(
        default=None,
        description="Directory or file of CachedModels and Workspaces; by default prewarm/ in the root.",
    )
    kubernetes: bool = Field(
        default=False,
        description="Read CachedModels from the cluster's API server and report to it.",
    )
    kubeconfig: FilePath | None = Field(
        default=None,
        description="Kubeconfig file, to reach the API server from outside the cluster.",
    )
    node: str | None = Field(
        default=None,
        description="This node's name; by default the variable NODE_NAME, else the host name.",
    )
    labels: Mapping[str, str] = Field(
        default_factory=dict,
        description="This node's labels, for node selectors without a cluster.",
    )
    secrets: FilePath | None = Field(
        default=None,
        description="Directory of pull secrets (NAME/.dockerconfigjson), used without a cluster.",
    )
    fetches: int = Field(
        default=2, ge=1, le=64, description="Maximum number of models pre-warmed concurrently."
    )
    bandwidth: AmountText = Field(
        default="0",
        description="Limit for pre-warming, in bytes per second: 100MB. 0: none. It excludes pulls that pods wait for.",
    )
    runtime: FilePath | None = Field(
        default=None,
        description="CRI socket of the container runtime, for runtimeImage: /run/containerd/containerd.sock.",
    )

    @property
    def in_cluster(self) -> bool:
        """Whether there is an API server to ask."""
        return self.kubernetes or self.kubeconfig is not None


class AgentConfig(_Section):
    """All settings of the agent. `budget` and `min_free` apply to `root` and to each of `extra_roots`."""

    root: FilePath | None = Field(default=None, description="Directory of the model cache.")
    extra_roots: tuple[FilePath, ...] = Field(
        default=(),
        description="An additional cache directory, on a disk of its own. Repeatable.",
    )
    port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Also serve the control API and the page on this loopback port; 0 takes a free one.",
    )
    budget: AmountText = Field(
        default="100%",
        description="Maximum size of the cache in each root, such as 500GB or 80% of the filesystem.",
    )
    min_free: AmountText = Field(
        default="5%",
        description="Minimum free space that the cache leaves on each root's filesystem.",
    )
    fetch: FetchSection = Field(default_factory=FetchSection)
    maintenance: MaintenanceSection = Field(default_factory=MaintenanceSection)
    tiers: TierSection = Field(default_factory=TierSection)
    servers: ServersSection = Field(default_factory=ServersSection)
    prewarm: PrewarmSection = Field(default_factory=PrewarmSection)
    peers: PeersSection | None = None
    signatures: tuple[SignatureSection, ...] = Field(
        default=(),
        description="A rule: {images: PATTERN, keys: [FILE]}; the first match decides.",
    )


def json_schema() -> dict[str, Any]:
    """The JSON schema of the settings file."""
    return AgentConfig.model_json_schema()
