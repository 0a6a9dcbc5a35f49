"""Renders the child process of `weightyard up` as data: command, environment and model."""

from __future__ import annotations

from typing import Any

from modelimage.errors import InvalidInput
from workspace.render.release import Release


def render_up(release: Release) -> dict[str, Any]:
    """The child's command line. Raises InvalidInput for an engine that runs only in containers."""
    plan = release.plan
    if plan.template.module is None:
        raise InvalidInput(
            f"`weightyard up` can't start {plan.engine.value}: it has no Python module",
            hint="Render it for compose or kubernetes instead.",
        )
    return {
        "model": {"image": release.model, "variant": plan.variant, "key": str(release.key)},
        "command": ["python3", "-m", plan.template.module, *plan.args],
        "environment": {
            # Secrets stay references to the caller's environment: this is printed.
            each.name: f"${each.name}" if each.secret else each.value
            for each in plan.env
        },
    }
