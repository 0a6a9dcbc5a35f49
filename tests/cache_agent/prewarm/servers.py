"""kmock as an API server for agents."""

from __future__ import annotations

from typing import Any

import kmock


class ApiServer(kmock.KubernetesEmulator):
    """Answers a question for what isn't there, as servers do; kmock would call it an error of the test."""

    async def _handle(self, request: Any) -> Any:
        try:
            return await super()._handle(request)
        except kmock.KubernetesError as error:
            return await self._render_error(error)
