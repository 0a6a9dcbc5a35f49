"""`weightyard doctor`: checks whether this machine or a cluster meets Weightyard's requirements."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import click

from cache_agent.store.space import Amount
from modelimage.access import Access
from modelimage.reference import parse_registry
from weightyard import __version__
from weightyard.advanced import AdvancedOption
from weightyard.console import Console, format_table, pass_console
from weightyard.crds import definitions
from weightyard.doctor.cluster_checks import Expected, Permission, check_cluster
from weightyard.doctor.clusters import ClusterQuery, ask, eviction_thresholds
from weightyard.doctor.gather import ProbePaths, gather
from weightyard.doctor.node_checks import MachineRole, NodePurpose, check_node
from weightyard.doctor.pods import PodProbe, Probing
from weightyard.doctor.registries import check_image
from weightyard.doctor.result import Finding, Level, PreflightFailed, fail
from weightyard.kubectl import Kubectl, cluster_options, kubectl
from weightyard.options import PathName, WholeNumber, access_options, default_root

_RBAC: Final = "rbac.authorization.k8s.io"
# The objects that `helm install` creates.
NEEDED: Final = (
    Permission("create", "customresourcedefinitions", "apiextensions.k8s.io"),
    Permission("create", "clusterroles", _RBAC),
    Permission("create", "clusterrolebindings", _RBAC),
    Permission("create", "csidrivers", "storage.k8s.io"),
    Permission("create", "priorityclasses", "scheduling.k8s.io"),
    Permission("create", "roles", _RBAC, namespaced=True),
    Permission("create", "rolebindings", _RBAC, namespaced=True),
    Permission("create", "daemonsets", "apps", namespaced=True),
    Permission("create", "deployments", "apps", namespaced=True),
    Permission("create", "networkpolicies", "networking.k8s.io", namespaced=True),
    Permission("create", "secrets", namespaced=True),
    Permission("create", "pods", namespaced=True),
)
_NODE_ROOT: Final = Path("/var/lib/weightyard")


class Size(click.ParamType[Amount]):
    """`200GB`, `150Gi` or `80%`."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Amount:
        return value if isinstance(value, Amount) else Amount.parse(str(value))


@dataclass(frozen=True, slots=True)
class Preflight:
    """How to check a cluster. `probe` None starts no pods."""

    selector: str
    namespace: str
    min_free: Amount
    probe: PodProbe | None


def _role(name: str, help_text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(f"--{name}", "role", flag_value=name, help=help_text)


@click.command()
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@_role("laptop", "Check this machine for `up`: disk, CPU or GPUs, vLLM.")
@_role("builder", "Check this machine for builds, as in CI: disk, clock, extras.")
@_role("node", "Check this machine as a node of a cluster: kubelet, containerd, disk, GPUs.")
@_role("cluster", "Check a cluster and its nodes instead of this machine.")
@click.option(
    "-n",
    "--namespace",
    default="weightyard",
    show_default=True,
    help="Namespace of Weightyard, installed or planned.",
)
@click.option(
    "--selector",
    default="nvidia.com/gpu.present=true",
    show_default=True,
    help="Labels of the nodes that get a cache, as in agent.nodeSelector; '' for all.",
)
@click.option(
    "--pods/--no-pods",
    default=True,
    show_default=True,
    help="Start a short-lived pod on each node to check what the API server doesn't know.",
)
@click.option(
    "--image",
    cls=AdvancedOption,
    default=f"ghcr.io/weightyard/weightyard-agent:{__version__}",
    show_default=True,
    help="Image of these pods.",
)
@click.option(
    "--timeout",
    cls=AdvancedOption,
    type=WholeNumber(5, 3600),
    default=120,
    show_default=True,
    help="Maximum seconds that these pods run.",
)
@click.option(
    "--root",
    type=PathName(file_okay=False),
    envvar="WEIGHTYARD_ROOT",
    show_envvar=True,
    help="Directory of the model cache.  [default: ~/.cache/weightyard/store; of nodes: /var/lib/weightyard]",
)
@click.option(
    "--kubelet",
    cls=AdvancedOption,
    type=PathName(file_okay=False),
    default=Path("/var/lib/kubelet"),
    show_default=True,
    help="kubelet's directory.",
)
@click.option(
    "--min-free",
    type=Size(),
    help="Minimum free space that the cache leaves.  [default: 5%; of nodes: 20%]",
)
@click.option(
    "--disk-trial",
    cls=AdvancedOption,
    type=Size(),
    default="256MB",
    show_default=True,
    help="Size of the file for measuring the disk's speed; 0 skips the measurement.",
)
@click.option(
    "--facts",
    "facts_only",
    cls=AdvancedOption,
    is_flag=True,
    help="Print the facts of this machine instead of checking them.",
)
@click.option(
    "--host",
    cls=AdvancedOption,
    type=PathName(file_okay=False),
    default=Path("/"),
    help="Mount point of the node's root filesystem, in a pod.",
)
@click.option(
    "--api",
    cls=AdvancedOption,
    metavar="URL",
    help="A server to compare this machine's clock with.",
)
@click.option(
    "--api-ca",
    cls=AdvancedOption,
    type=PathName(dir_okay=False),
    help="PEM file of the authorities that this server's certificate is checked with.",
)
@access_options
@cluster_options
@pass_console
def doctor(
    console: Console,
    *,
    images: tuple[str, ...],
    role: str | None,
    namespace: str,
    selector: str,
    pods: bool,
    image: str,
    timeout: int,
    root: Path | None,
    kubelet: Path,
    min_free: Amount | None,
    disk_trial: Amount,
    host: Path,
    api: str | None,
    api_ca: Path | None,
    facts_only: bool,
    access: Access,
    context: str | None,
    kubeconfig: str | None,
) -> None:
    """Check Weightyard's requirements, before it is installed or when it doesn't work.

    Each check is ok, warn or fail, with what was seen and what to do. The exit code is 20 when one fails.

    What the machine is for is guessed: a node where kubelet runs, a builder where CI is set, else a laptop. For each
    IMAGE its registry is asked with this user's credentials. With --cluster, kubectl is used as it is configured here.
    """
    # First, for every role: whether an image can be pulled is asked with this user's credentials, wherever it will run.
    asked = [check_image(parse_registry(each), access) for each in images]
    if role == "cluster":
        probe = PodProbe(
            namespace, image, str(root or _NODE_ROOT), str(kubelet), disk_trial.bytes, timeout
        )
        preflight = Preflight(
            selector, namespace, min_free or Amount(percent=20.0), probe if pods else None
        )
        _report(console, [*look_at(console, kubectl(context, kubeconfig), preflight), *asked])
        return
    store = root or default_root(os.environ)
    facts = gather(
        ProbePaths(store.absolute(), kubelet, host, trial=disk_trial.bytes, api=api, api_ca=api_ca)
    )
    # Before anything is judged: whoever started this on another machine judges the facts there.
    if facts_only:
        console.result(facts.model_dump(mode="json"), facts.model_dump_json(indent=2))
        return
    guessed = guess_role(os.environ, kubelet=facts.kubelet.runs_here)
    purpose = guessed if role is None else MachineRole(role)
    how = "" if role else " (guessed; see --help)"
    console.say(f"checking this machine as a {purpose}{how}")
    wanted = NodePurpose(purpose, min_free or Amount(percent=5.0))
    _report(console, [*check_node(facts, wanted), *asked])


def guess_role(environ: Mapping[str, str], *, kubelet: bool) -> MachineRole:
    """What this machine is for. CI systems set CI."""
    if kubelet:
        return MachineRole.NODE
    return MachineRole.BUILDER if environ.get("CI") else MachineRole.LAPTOP


def look_at(console: Console, cluster: Kubectl, preflight: Preflight) -> Iterator[Finding]:
    """All findings of a cluster: from its API server, then from its nodes."""
    expected = Expected(definitions(), preflight.selector, __version__)
    questions = ClusterQuery(preflight.selector, preflight.namespace, NEEDED, tuple(expected.crds))
    facts = ask(cluster, questions)
    yield from check_cluster(facts, expected)
    if preflight.probe is None or not facts.nodes:
        return
    if facts.namespace_labels is None:
        yield fail(
            "node pods",
            f"no namespace {preflight.namespace} to start them in",
            "Create it, or use --no-pods.",
        )
        return
    names = sorted(each["metadata"]["name"] for each in facts.nodes)
    console.say(f"checking {len(names)} nodes with a pod on each in {preflight.namespace}")
    yield from _on_nodes(cluster, preflight.probe, names, preflight.min_free)


def _on_nodes(
    cluster: Kubectl, probe: PodProbe, names: list[str], min_free: Amount
) -> Iterator[Finding]:
    wanted = NodePurpose(MachineRole.NODE, min_free)
    found = Probing(cluster, probe, secrets.token_hex(3)).gather(names)
    for node, shown in sorted(found.items()):
        if isinstance(shown, str):
            finding = fail("node pod", shown, "Look at the node, or use --no-pods.")
            yield replace(finding, where=node)
            continue
        told = eviction_thresholds(cluster, node) or shown.kubelet.eviction_hard
        kubelet = shown.kubelet.model_copy(update={"eviction_hard": told})
        facts = shown.model_copy(update={"kubelet": kubelet})
        yield from (replace(each, where=node) for each in check_node(facts, wanted))


def _report(console: Console, findings: list[Finding]) -> None:
    """Prints the table, or the findings as JSON. Raises PreflightFailed when a check failed."""
    on_nodes = any(each.where for each in findings)
    rows = [
        ([each.where or "-"] if on_nodes else []) + [each.level.value, each.check, each.seen]
        for each in findings
    ]
    columns = (["node"] if on_nodes else []) + ["", "check", "seen"]
    lines = format_table(columns, rows).splitlines()
    shown = [lines[0]]
    for line, each in zip(lines[1:], findings, strict=True):
        # On its own line: as a column it would exceed a terminal's width.
        shown += [line, f"    do: {each.advice}"] if each.advice else [line]
    console.result({"findings": [asdict(each) for each in findings]}, "\n".join(shown))
    failed = sum(each.level is Level.FAIL for each in findings)
    if failed:
        checks = f"{failed} check" if failed == 1 else f"{failed} checks"
        raise PreflightFailed(
            f"{checks} failed", hint="Follow the advice above, then run it again."
        )
