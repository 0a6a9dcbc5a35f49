"""Whether a Karpenter NodePool can make a node for pods with some demands, and why not. Pure.

As Karpenter decides it: a pool's requirements and template labels and a pod's terms must leave a value for each label.
Labels of instance types may have any value that the pool leaves; others must be named by the pool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from modelimage.bounds import parse_count
from workspace.node_demands import CAPACITY_TYPE
from workspace.node_terms import MOST, Term, is_in, match
from workspace.render.quantities import value_of

Json = dict[str, Any]

GROUP: Final = "karpenter.sh"
POOL_LABEL: Final = "karpenter.sh/nodepool"
# Labels that come with instance types and places, beside those of the pool's cloud: in the domain of its node class.
OFFERED: Final = (
    "kubernetes.io/arch", "kubernetes.io/os", "node.kubernetes.io/instance-type", "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region", CAPACITY_TYPE,
)  # fmt: skip


def refusal(
    pool: Json, terms: Sequence[Term], selector: Mapping[str, str],
    tolerated: Callable[[Json], bool],
) -> str:  # fmt: skip
    """Why a pool makes no node for pods with these terms, node selector and tolerations; empty if it does."""
    template = (pool.get("spec") or {}).get("template") or {}
    spec, metadata = template.get("spec") or {}, template.get("metadata") or {}
    taints = [each for each in spec.get("taints") or () if not tolerated(each)]
    if taints:
        return f"its taint {taints[0].get('key')} isn't tolerated"
    asked = [is_in(key, [value]) for key, value in selector.items()]
    given: Term = [
        *(spec.get("requirements") or ()),
        *(is_in(key, [value]) for key, value in (metadata.get("labels") or {}).items()),
        is_in(POOL_LABEL, [str(pool["metadata"]["name"])]),
    ]
    domain = f"{(spec.get('nodeClassRef') or {}).get('group')}/"
    refused = [_conflict([*asked, *term], given, domain) for term in terms or [[]]]
    if "" in refused:
        return ""
    # Of several clouds' labels, that of the pool's own says most.
    named = next((key for key in refused if key.startswith(domain)), refused[-1])
    return f"its requirements leave no node with {named}"


def trouble(pool: Json) -> str:
    """Why a pool makes no nodes now, whoever asks: it isn't ready, or its limit is used up; empty without a reason."""
    status = pool.get("status") or {}
    for each in status.get("conditions") or ():
        # Unknown is no refusal: Karpenter may not have looked at the pool yet.
        if each.get("status") == "False" and each.get("type") in ("NodeClassReady", "Ready"):
            return f"{each['type']} is false: {each.get('message') or each.get('reason')}"
    limits, used = (pool.get("spec") or {}).get("limits") or {}, status.get("resources") or {}
    full = [name for name, most in limits.items() if _is_used_up(used.get(name, 0), most)]
    return f"its limit of {limits[full[0]]} {full[0]} is used up" if full else ""


def _conflict(asked: Term, given: Term, domain: str) -> str:
    """The first label for which both leave no value; empty if there is none."""
    for key in dict.fromkeys(each["key"] for each in asked):
        mine = [each for each in asked if each["key"] == key]
        theirs = [each for each in given if each["key"] == key]
        if not theirs and key not in OFFERED and not key.startswith(domain):
            # A label that nobody gives a node: as the scheduler sees a node without it.
            if not match([mine], {}):
                return str(key)
        elif not _leaves_a_value(key, [*mine, *theirs]):
            return str(key)
    return ""


def _leaves_a_value(key: str, requirements: Sequence[Json]) -> bool:
    """Whether any value, or none at all, fulfils all requirements on one label."""
    if any(each["operator"] == "DoesNotExist" for each in requirements):
        return match([list(requirements)], {})
    return any(match([list(requirements)], {key: value}) for value in _candidates(requirements))


def _candidates(requirements: Sequence[Json]) -> Iterable[str]:
    """Values of which one fulfils the requirements if any does."""
    listed = [set(each.get("values") or ()) for each in requirements if each["operator"] == "In"]
    if listed:
        return sorted(set.intersection(*listed))
    # One more than are excluded, so that one is left.
    more = range(
        1
        + sum(len(each.get("values") or ()) for each in requirements if each["operator"] == "NotIn")
    )
    least = [
        _number(each) + (each["operator"] == "Gt")
        for each in requirements
        if each["operator"] in ("Gt", "Gte")
    ]
    most = [
        _number(each) - (each["operator"] == "Lt")
        for each in requirements
        if each["operator"] in ("Lt", "Lte")
    ]
    if least:
        return [str(max(least) + step) for step in more]
    if most:
        return [str(min(most) - step) for step in more]
    return [f"any-{step}" for step in more]


def _number(requirement: Json) -> int:
    """The bound that a requirement compares with. Karpenter's definition allows nothing but one number."""
    values = requirement.get("values") or ()
    return parse_count(str(values[0]), most=MOST) or 0 if values else 0


def _is_used_up(used: Any, most: Any) -> bool:
    """Whether a limit leaves nothing; one that can't be read leaves all."""
    there, limit = value_of(str(used)), value_of(str(most))
    return there is not None and limit is not None and there >= limit
