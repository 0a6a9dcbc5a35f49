"""Opens the agent's servers for pods, runtimes and peers, from the settings. Part of the composition root.

They share no socket and no thread pool with the control API, so that their load doesn't block it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web

from cache_agent.access.authorizer import Authorizer
from cache_agent.access.decide import CacheTTL
from cache_agent.access.upstream import UpstreamRegistries, fail_fast
from cache_agent.config import AgentConfig, PeersSection
from cache_agent.daemon.peers_setup import tls_files
from cache_agent.net.listen_addresses import Address
from cache_agent.net.node_name import node_name
from cache_agent.node.node import Node
from cache_agent.node.threads import BlockingExecutor
from cache_agent.observability.events import MaintenanceFailed
from cache_agent.peers.peer_client import TlsFiles
from cache_agent.servers.csi.driver_options import CsiOptions
from cache_agent.servers.csi.mount_client import MounterClient, Mounts
from cache_agent.servers.csi.pod_events import PodEvents
from cache_agent.servers.csi.volumes import ImageAccess, Listeners, Threads, Volumes
from cache_agent.servers.hub.api import HubApi
from cache_agent.servers.hub.fill import Fills
from cache_agent.servers.hub.hub_client import HubUpstream
from cache_agent.servers.hub.service import HubService
from cache_agent.servers.hub.trusted_images import TrustedImages
from cache_agent.servers.listener import serve
from cache_agent.servers.mirror.api import MirrorApi
from cache_agent.servers.mirror.service import MirrorService
from cache_agent.servers.peers.api import PeersApi
from cache_agent.servers.peers.servable_chunks import ServableChunks
from cache_agent.servers.shared_pulls import SharedPulls
from cache_agent.sources.throttle import Throttle
from cache_agent.store.manifests import ManifestCache
from cache_agent.store.roots import Roots
from cache_agent.store.space import Amount
from cache_agent.store.values import repository_of
from modelimage.access import Access
from modelimage.allowed_registries import AllowedRegistries
from modelimage.errors import InvalidInput, WeightyardError
from modelimage.hub import DEFAULT_ENDPOINT, endpoint
from modelimage.installation import installed_version
from modelimage.reference import RegistryReference, parse_image

_THREADS = 16


@dataclass(frozen=True, slots=True)
class PeerServer:
    """The peers server: `upload` caps all uploads, in bytes per second (0: no cap); `uploads`: how many at a time."""

    listen: Address
    upload: float = 0.0
    uploads: int = 32
    tls: TlsFiles | None = None

    @classmethod
    def of(cls, section: PeersSection) -> PeerServer:
        """The options from the settings. Raises InvalidInput."""
        upload = float(Amount.parse(section.upload).bytes)
        return cls(Address.parse(section.listen), upload, section.uploads, tls_files(section))


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Which servers to open. `registries`: those that tenants may name; empty means the well-known public ones.

    `hub_images`: patterns of image repositories trusted to state their Hub origin.
    """

    mirror: Address | None = None
    registries: tuple[str, ...] = ()
    hub: Address | None = None
    hub_upstream: str = DEFAULT_ENDPOINT
    hub_images: tuple[str, ...] = ()
    observe: Address | None = None
    csi: CsiOptions | None = None
    peers: PeerServer | None = None

    @classmethod
    def of(cls, config: AgentConfig, environment: Mapping[str, str]) -> ServerOptions:
        """The options from the settings and HF_ENDPOINT. Raises InvalidInput."""
        section, peers = config.servers, config.peers
        mirror = Address.parse(section.mirror) if section.mirror else None
        hub = Address.parse(section.hub) if section.hub else None
        observe = Address.parse(section.observe) if section.observe else None
        csi = None
        if section.csi is not None:
            csi = CsiOptions(section.csi.kubelet, section.csi.mounter, node_name())
        return cls(
            mirror=mirror,
            registries=section.registries,
            hub=hub,
            hub_upstream=endpoint(environment, config.tiers.hub.endpoint),
            hub_images=section.hub_images,
            observe=observe,
            csi=csi,
            peers=PeerServer.of(peers) if peers else None,
        )


@dataclass(frozen=True, slots=True)
class RunningServers:
    """The addresses of the open servers; None for those that aren't open."""

    mirror: Address | None = None
    hub: Address | None = None
    observe: Address | None = None
    csi: Path | None = None
    peers: Address | None = None

    def named(self) -> dict[str, str]:
        """The addresses of the open servers, by name."""
        every = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: str(at) for name, at in every.items() if at is not None}


async def open_servers(
    node: Node,
    access: Access,
    options: ServerOptions,
    stack: AsyncExitStack,
    observing: web.Application | None = None,
    *,
    pod_events: PodEvents,
) -> RunningServers:
    """Open the servers until the stack is left; `observing` is served at `options.observe`.

    Raises Busy for an address that is taken, NotWritable for a CSI socket, InvalidInput for peers without a peers tier.
    """
    try:
        prune_manifest_cache(node.store, node.manifest_cache)
    except WeightyardError as error:
        # A cache of manifests that can't be tidied is no reason to serve no models.
        node.events.emit(MaintenanceFailed(error.message))
    allowed = AllowedRegistries.from_config(options.registries)
    # Access checks fail fast, because a runtime can go to the registry itself; transfers retry.
    questions, transfers = (
        UpstreamRegistries(fail_fast(access), allowed),
        UpstreamRegistries(access, allowed),
    )
    # The mirror and the CSI driver share one authorizer, so that a proof of access serves both.
    gate = Authorizer(node.clock, public=node.manifest_cache)
    mirror = hub = observe = None
    if options.mirror is not None:
        service = MirrorService(
            node.store, node.manifest_cache, SharedPulls(node.pull), gate, questions, transfers
        )
        api = MirrorApi(service, _executor(stack, 32))
        mirror = await serve(stack, api.application(), options.mirror, option="another --mirror")
    if options.hub is not None:
        hub = await _open_hub(node, access, options, options.hub, questions=questions, stack=stack)
    if options.observe is not None and observing is not None:
        observe = await serve(stack, observing, options.observe, option="another --observe")
    peers = await _open_peers(node, options.peers, stack) if options.peers else None
    if options.csi is not None:
        reach = ImageAccess(gate, node.trust, questions, transfers)
        await _open_csi(node, options.csi, access=reach, pod_events=pod_events, stack=stack)
    csi = options.csi.endpoint if options.csi else None
    return RunningServers(mirror, hub, observe, csi, peers)


async def _open_hub(
    node: Node,
    access: Access,
    options: ServerOptions,
    address: Address,
    *,
    questions: UpstreamRegistries,
    stack: AsyncExitStack,
) -> Address:
    # Without a limit for one host: this server asks only one.
    sender = fail_fast(access, per_host=None).sender(urlsplit(options.hub_upstream).netloc)
    # Refusals aren't cached, because each must pass on the Hub's own error code and message.
    gate = Authorizer(node.clock, CacheTTL(refusal=0.0), node.manifest_cache)
    files = HubService(
        node.store,
        node.manifest_cache,
        Fills(node.store, SharedPulls(node.pull)),
        gate,
        HubUpstream(options.hub_upstream.rstrip("/"), sender),
        TrustedImages(
            node.store, questions, gate, options.hub_images, node.trust, events=node.events
        ),
    )
    api = HubApi(files, _executor(stack))
    return await serve(stack, api.application(), address, option="another --hub")


async def _open_csi(
    node: Node,
    options: CsiOptions,
    *,
    access: ImageAccess,
    pod_events: PodEvents,
    stack: AsyncExitStack,
) -> None:
    # Imported here: gRPC takes 11 MB, which an agent without a CSI driver doesn't need.
    from cache_agent.servers.csi.driver import CsiServer, Driver  # noqa: PLC0415

    # More threads for upstream, because each of its calls may wait for seconds.
    threads = Threads(upstream=_executor(stack, 32), local=_executor(stack, 8))
    volumes = Volumes(
        node.store,
        pulls=SharedPulls(node.pull),
        activity=node.activity,
        access=access,
        mounts=Mounts(MounterClient(options.mounter), threads.local),
        threads=threads,
        listeners=Listeners(pod_events, node.events),
    )
    server = CsiServer(Driver(volumes, options, installed_version()))
    stack.push_async_callback(server.stop)
    await server.start()


async def _open_peers(node: Node, options: PeerServer, stack: AsyncExitStack) -> Address:
    peers = node.peers
    if peers is None:
        raise InvalidInput("the peers server needs a peers tier, which the settings don't have")
    offers = ServableChunks(
        node.store,
        node.downloads,
        peers.announcements,
        peers.encrypted,
        lambda repository: node.manifest_cache.public_since(repository) is not None,
        lambda: peers.own.zone,
    )
    throttle = Throttle(options.upload, time.monotonic)
    executor = _executor(stack)
    api = PeersApi(offers, peers.verifier, executor, node.events, throttle, options.uploads)
    context = options.tls.server_context() if options.tls else None
    return await serve(
        stack, api.application(), options.listen, context, option="another peers.listen"
    )


def prune_manifest_cache(store: Roots, manifest_cache: ManifestCache) -> int:
    """Drop cached manifests of repositories without a stored model; return their number. Hub listings stay."""
    images = [image for model in store.models.all() for image in store.models.images_of(model.key)]
    parsed = map(parse_image, images)
    cached = {repository_of(each) for each in parsed if isinstance(each, RegistryReference)}
    return manifest_cache.prune(lambda place: place in cached or place.startswith("hub:"))


def _executor(stack: AsyncExitStack, threads: int = _THREADS) -> BlockingExecutor:
    """A thread pool for one server, so that waiting for upstream in one doesn't block the others."""
    executor = BlockingExecutor(threads)
    stack.callback(executor.close)
    return executor
