"""The agent's page: looks at its node through the control API's service.

Other programs' servers on the machine are told by whoever starts the agent: this module knows none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cache_agent.api.node_cache import NodeCache
from cache_agent.api.page.node_rows import AgentLook, node_rows
from cache_agent.api.page.view import Row, View, compose
from cache_agent.node.control_service import Service
from cache_agent.node.threads import BlockingExecutor

# The rows of servers on this machine, by name. Blocking.
LocalServers = Callable[[], Mapping[str, Row]]


@dataclass(frozen=True, slots=True)
class PageLook:
    """Makes the page's view of one node."""

    service: Service
    executor: BlockingExecutor
    servers: LocalServers

    async def __call__(self) -> View:
        """The view of now."""
        # Not in a thread: the desired state belongs to the event loop.
        report = self.service.report()
        return await self.executor.call(lambda: self._view(report))

    def _view(self, report: NodeCache) -> View:
        service = self.service
        node = service.with_current_pins(report)
        look = AgentLook(
            service.space(), service.activity(), service.eviction_order(), service.leases()
        )
        rows = self.servers()
        problems = [
            {"where": name, "what": row.get("why", ""), "workspace": name}
            for name, row in rows.items()
            if row.get("bad")
        ]
        about = {"kind": "node", "name": node.name}
        return compose(about, [node_rows(node, look)], rows, problems)
