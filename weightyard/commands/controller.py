"""`weightyard controller`: runs the Workspace controller."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from ipaddress import ip_network
from pathlib import Path

import click
from pydantic import ValidationError

from cache_agent.api.kube.kubeconfig import default_connection
from modelimage.access import Access
from modelimage.allowed_registries import AllowedRegistries
from modelimage.errors import InvalidInput
from modelimage.registry.transport import trusting
from modelimage.spans import exporting
from weightyard.advanced import AdvancedOption
from weightyard.options import PathName, access_options
from weightyard.program_log import configure_log, log_options
from workspace.controller.loops.prometheus import PrometheusAddress
from workspace.controller.main import ControllerOptions, run_controller
from workspace.controller.process.health_server import Liveness, answering
from workspace.controller.process.log_events import about
from workspace.render.build_settings import BuildSettings
from workspace.render.routing import BUILDER_IMAGE, DEFAULT_IMAGE, SystemSettings
from workspace.render.trace_settings import TraceSettings
from workspace.template_spec import DEFAULT_FIELDS, parse_fields
from workspace.trace_context import Tracing

logger = logging.getLogger(__name__)

# Builds get the authorities as an annotation of their pods; all annotations of an object have 256 KiB.
_CA_MOST = 200_000
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")


def _labels(name: str, text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """An option of labels that namespaces have."""
    return click.option(
        name, cls=AdvancedOption, multiple=True, metavar="LABEL=VALUE",
        help=f"{text} Repeatable.  [default: none]",
    )  # fmt: skip


@click.command()
@click.option(
    "--namespace", envvar="WEIGHTYARD_NAMESPACE", show_envvar=True, default="weightyard", show_default=True,
    help="Weightyard's own namespace, which has its Lease.",
)  # fmt: skip
@click.option(
    "--image", envvar="WEIGHTYARD_IMAGE", show_envvar=True, default=DEFAULT_IMAGE, show_default=True,
    help="Image of Weightyard's own programs, for activators.",
)  # fmt: skip
@click.option(
    "--builder-image", envvar="WEIGHTYARD_BUILDER_IMAGE", show_envvar=True, default=BUILDER_IMAGE,
    show_default=True, help="Image of the builder, for models from the Hub or S3.",
)  # fmt: skip
@click.option(
    "--build-env", "build_env", cls=AdvancedOption, multiple=True, metavar="NAME=VALUE",
    help="Environment of builds in the cluster. Repeatable. Proxies of the controller's own environment are passed on.",
)  # fmt: skip
@click.option(
    "--build-request", "build_requests", cls=AdvancedOption, multiple=True,
    metavar="RESOURCE=QUANTITY",
    default=("cpu=1", "memory=1Gi"), show_default=True, help="What a build requests. Repeatable.",
)  # fmt: skip
@click.option(
    "--build-limit", "build_limits", cls=AdvancedOption, multiple=True, metavar="RESOURCE=QUANTITY",
    help="What a build may use at most. Repeatable.  [default: no limits]",
)  # fmt: skip
@click.option(
    "--blocked-cidr", "blocked", cls=AdvancedOption, multiple=True, metavar="CIDR",
    help="A network that builds may not reach, such as the cloud's instance metadata. Repeatable.  [default: none]",
)  # fmt: skip
@click.option(
    "--namespace-quotas/--no-namespace-quotas", "quotas", cls=AdvancedOption, default=False,
    show_default=True,
    help="Let Workspaces set the ResourceQuota and LimitRange of their namespace (spec.tenancy).",
)  # fmt: skip
@click.option(
    "--template-fields", cls=AdvancedOption, metavar="FIELD,FIELD...",
    default=",".join(sorted(DEFAULT_FIELDS)), show_default=True,
    help="The fields of spec.template that Workspaces may use; '' is none.",
)  # fmt: skip
@_labels("--metrics-from", "A label of the namespaces whose pods may scrape the servers' metrics.")
@click.option(
    "--trace-servers", cls=AdvancedOption, metavar="URL",
    help="The collector to which vLLM servers send spans whose Workspace names none, as vLLM takes it "
    "(http://collector.monitoring:4317); their images need vllm[otel].  [default: none]",
)  # fmt: skip
@_labels(
    "--traces-in",
    "A label of the collector's namespace, to which servers and activators may send spans.",
)
@_labels(
    "--gateways-from",
    "A label of the namespaces of Gateways' proxies, which reach routed servers.",
)
@click.option(
    "--prometheus", cls=AdvancedOption, metavar="URL",
    help="The Prometheus that answers the queries of rollouts. {{namespace}} in it stands for the Workspace's.  "
    "[default: none]",
)  # fmt: skip
@click.option(
    "--prometheus-token", "token_file", cls=AdvancedOption, metavar="FILE",
    type=PathName(exists=True, dir_okay=False), help="A file with the bearer token for it.  [default: none]",
)  # fmt: skip
@click.option(
    "--node-conditions/--no-node-conditions", cls=AdvancedOption, default=False,
    help="Give Nodes the condition cache.weightyard.dev/PinnedReady.",
)  # fmt: skip
@click.option(
    "--health",
    metavar="HOST:PORT",
    help="Serve /livez, /readyz and /metrics at this address.  [default: nowhere]",
)
@click.option(
    "--page",
    metavar="HOST:PORT",
    help="Serve the page of the cluster's cache at this address, to whom the cluster lets list NodeCaches and "
    "Workspaces.  [default: nowhere]",
)
@click.option(
    "--registry", "registries", metavar="HOST", multiple=True,
    help="A registry that Workspaces may name; `*` matches within one label. Repeatable.  "
    "[default: the well-known public ones]",
)  # fmt: skip
@log_options
@access_options
def controller(
    *, namespace: str, image: str, builder_image: str, build_env: tuple[str, ...], build_requests: tuple[str, ...],
    build_limits: tuple[str, ...], blocked: tuple[str, ...], quotas: bool, template_fields: str,
    metrics_from: tuple[str, ...],
    trace_servers: str | None, traces_in: tuple[str, ...], gateways_from: tuple[str, ...], prometheus: str | None,
    token_file: Path | None, node_conditions: bool,
    health: str | None, page: str | None, registries: tuple[str, ...], log_level: str, log_format: str, access: Access,
) -> None:  # fmt: skip
    """Reconcile every Workspace of a cluster with its spec.

    Connects as the pod's service account, or by KUBECONFIG. Several may run: one leads, the others stand by.
    """
    configure_log(log_level, log_format)
    where = _address(health)
    liveness = Liveness(time.monotonic)
    options = ControllerOptions(
        me=f"{socket.gethostname()}_{os.getpid()}",
        environment=SystemSettings(
            system_namespace=namespace,
            image=image,
            builder_image=builder_image,
            quotas=quotas,
            template_fields=parse_fields(template_fields),
            metrics_from=_pairs("--metrics-from", metrics_from),
            gateways_from=_pairs("--gateways-from", gateways_from),
            builds=BuildSettings(
                plain_http=tuple(sorted(access.plain_http)),
                internal_hosts=tuple(sorted(access.internal_hosts)),
                ca=_authorities(access),
                env={**_proxies(), **_pairs("--build-env", build_env)},
                requests=_pairs("--build-request", build_requests),
                limits=_pairs("--build-limit", build_limits),
                blocked=_networks(blocked),
            ),
            tracing=TraceSettings.of(
                os.environ,
                servers=_collector(trace_servers),
                namespaces=_pairs("--traces-in", traces_in),
            ),
        ),
        access=access,
        connection=default_connection(),
        liveness=liveness,
        allowed=AllowedRegistries.from_config(registries),
        page=_address(page),
        prometheus=PrometheusAddress.parse(prometheus, token_file, trusting(access.ca_file))
        if prometheus
        else None,
        node_conditions=node_conditions,
    )
    with exporting(os.environ, service="weightyard-controller"):
        asyncio.run(_run(options, liveness, health=where))


def _address(given: str | None) -> tuple[str, int] | None:
    """A host and a port; None without an address. Raises InvalidInput."""
    if not given:
        return None
    host, _, port = given.rpartition(":")
    if not host or not port.isdecimal():
        raise InvalidInput(f"not an address: {given!r}", hint="Write HOST:PORT.")
    return host.strip("[]"), int(port)


def _collector(given: str | None) -> str | None:
    """A collector's address as Workspaces have it. Raises InvalidInput."""
    try:
        return Tracing(endpoint=given).endpoint if given else None
    except ValidationError as error:
        raise InvalidInput(
            f"--trace-servers: not a collector's address: {given!r}",
            hint="Write http://HOST:PORT.",
        ) from error


def _authorities(access: Access) -> str:
    """The authorities that builds trust too, as PEM. Raises InvalidInput when they are too many."""
    ca = access.ca_file.read_text() if access.ca_file is not None else ""
    if len(ca) > _CA_MOST:
        raise InvalidInput(
            f"{access.ca_file} has {len(ca)} characters, and builds can be given at most {_CA_MOST}",
            hint="Keep only your own authorities in it: the public ones are known already.",
        )
    return ca


def _proxies() -> dict[str, str]:
    """The controller's own proxies: builds reach registries and the Hub as it does."""
    return {name: value for name in _PROXIES if (value := os.environ.get(name))}


def _networks(given: tuple[str, ...]) -> tuple[str, ...]:
    """Networks as the API server takes them. Raises InvalidInput."""
    try:
        return tuple(str(ip_network(each)) for each in given)
    except ValueError as error:
        raise InvalidInput(
            f"--blocked-cidr: {error}", hint="Write a network such as 169.254.169.254/32."
        ) from error


def _pairs(option: str, given: tuple[str, ...]) -> dict[str, str]:
    pairs = [each.partition("=") for each in given]
    for name, equals, value in pairs:
        if not name or not equals:
            raise InvalidInput(f"{option} {name}{equals}{value}", hint="Write it as NAME=VALUE.")
    return {name: value for name, _, value in pairs}


async def _run(
    options: ControllerOptions, liveness: Liveness, *, health: tuple[str, int] | None
) -> None:
    """`health` is a host and a port; None disables the health server."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        if health is not None:
            found = await stack.enter_async_context(
                answering(
                    liveness, host=health[0], port=health[1], metrics=options.metrics.exposition
                )
            )
            logger.info("health on %s:%d", health[0], found, extra=about("health served"))
        await run_controller(
            options, stop=stop, leading=lambda: logger.info("leading", extra=about("leading"))
        )
