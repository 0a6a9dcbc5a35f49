"""Types of the Workspace's fields: names, texts, amounts, each with its bounds."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Final

from pydantic import BeforeValidator, Field, StringConstraints, ValidationInfo

from cache_agent.api.kube_objects import LabelKey, LabelValue, ResourceAmount

# Deployment and Service names add suffixes to it and must stay within the 63 characters of a DNS
# label. The suffixes start with `--`, which no Workspace's name contains.
_NAME = r"[a-z](-?[a-z0-9])*"
_ADAPTER = r"[a-z]([a-z0-9-]{0,50}[a-z0-9])?"
_ENV_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
# Kubernetes' numbers have 32 bits; nothing here is near this.
MOST_REPLICAS = 10_000
MOST_NODES = 32  # of one replica


# The validation context of a document that an API server has stored.
STORED: Final = {"stored": True}


def refuse_without_effect(info: ValidationInfo, why: str) -> None:
    """Refuses a field that would do nothing, unless the document is stored already.

    Rules of this kind grow with each release. A document that an earlier one accepted still says clearly which servers
    it asks for, and those must not be left alone for it. The CRD's rules tell whoever changes it next; before
    Kubernetes 1.30 they also refuse writes of its status.
    """
    if not info.context:
        raise ValueError(why)


def refuse_repeats(field: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{field} has {name!r} twice")


def as_enum(kind: type[Enum]) -> BeforeValidator:
    """Accepts an enum's values: strict mode accepts only members, and documents contain values."""

    def convert(value: object) -> object:
        return next((member for member in kind if member.value == value), value)

    return BeforeValidator(convert)


Name = Annotated[str, StringConstraints(pattern=f"^{_NAME}$", max_length=52)]
AdapterName = Annotated[str, StringConstraints(pattern=f"^{_ADAPTER}$", max_length=52)]
EnvName = Annotated[str, StringConstraints(pattern=f"^{_ENV_NAME}$", max_length=256)]
# An argument or a variable's value, such as a chat template.
Text = Annotated[str, StringConstraints(max_length=16_384)]
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=64)]
Amounts = Annotated[dict[LabelKey, ResourceAmount], Field(max_length=64)]
Port = Annotated[int, Field(ge=0, le=65535)]
