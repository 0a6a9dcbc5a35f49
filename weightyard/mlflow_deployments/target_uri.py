"""Parses target URIs: a namespace of a cluster, or this machine. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from modelimage.errors import InvalidInput

SCHEME: Final = "weightyard"
LOCAL: Final = "local"
FORMS: Final = (
    ("weightyard:/NAMESPACE", "a namespace of the cluster of kubectl's current context"),
    ("weightyard://CONTEXT/NAMESPACE", "a namespace of another context's cluster"),
    ("weightyard", "the namespace of kubectl's current context"),
    ("weightyard:/local", "this machine; a namespace of that name needs a CONTEXT"),
)
_NAMESPACE: Final = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class DeploymentTarget:
    """Where deployments are: on this machine, or in a namespace; None is that of the context, or the current context.

    Law: `parse_target(str(t)) == t`.
    """

    is_local: bool = False
    namespace: str | None = None
    context: str | None = None

    def __str__(self) -> str:
        if self.is_local:
            return f"{SCHEME}:/{LOCAL}"
        if self.context is not None:
            return f"{SCHEME}://{quote(self.context, safe='')}/{self.namespace or ''}"
        return f"{SCHEME}:/{self.namespace}" if self.namespace else SCHEME


def parse_target(uri: str) -> DeploymentTarget:
    """The target of a URI. Raises InvalidInput."""
    parts = urlsplit(uri)
    named = parts.path.removeprefix("/")
    if uri == SCHEME:
        return DeploymentTarget()
    if parts.scheme != SCHEME or parts.query or parts.fragment or parts.path == named:
        raise _invalid(uri)
    context = unquote(parts.netloc) or None
    if context is None and named == LOCAL:
        return DeploymentTarget(is_local=True)
    if named and not _NAMESPACE.fullmatch(named):
        raise _invalid(uri)
    return DeploymentTarget(namespace=named or None, context=context)


def _invalid(uri: str) -> InvalidInput:
    forms = ", ".join(form for form, _ in FORMS)
    return InvalidInput(f"not a target of Weightyard: {uri[:200]!r}", hint=f"Write one of {forms}.")
