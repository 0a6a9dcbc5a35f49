"""`weightyard check`: verifies a cache."""

from __future__ import annotations

from pathlib import Path

import click

from cache_agent.api.wire import FindingView, to_document
from cache_agent.daemon.cache_api import open_cache
from cache_agent.errors import StoreDamaged
from modelimage.access import Access
from weightyard.console import Console, pass_console
from weightyard.options import access_options, root_option
from weightyard.text import format_bytes, plural


@click.command()
@click.option(
    "--repair", is_flag=True, help="Repair what can be repaired; damaged files are fetched again."
)
@click.option(
    "--quick", is_flag=True, help="Don't read the files' contents; check everything else."
)
@root_option
@access_options
@pass_console
def check(console: Console, *, repair: bool, quick: bool, root: Path, access: Access) -> None:
    """Read the whole cache and check every invariant: digests, links, ledger, leases, no leftovers."""
    with open_cache(root, access, create=False) as cache:
        view = cache.check(repair=repair, quick=quick)
    lines = [_line(finding) for finding in view.findings]
    lines.append(
        f"{plural(view.files, 'file')}, {plural(view.models, 'model')}, "
        f"{format_bytes(view.bytes_read)} read: {plural(len(view.findings), 'finding')}"
    )
    console.result(to_document(view), "\n".join(lines))
    left = [finding for finding in view.findings if not finding.repaired]
    if left:
        raise StoreDamaged(
            f"the cache at {view.root} has {plural(len(left), 'finding')}",
            hint="Run it with --repair."
            if not repair
            else "Look at the disk: see the findings above.",
        )


def _line(finding: FindingView) -> str:
    what = f"{finding.kind}: {finding.path}: {finding.detail}"
    return f"repaired: {what}" if finding.repaired else f"WRONG: {what}\n  {finding.advice}"
