"""Explains why a pod, an image or a desired model waits or failed, in words and numbers. Read-only."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final

from cache_agent.api.node_cache import DesiredModelState
from cache_agent.api.wire import ExplainView
from cache_agent.node.activity import Activity, PodVolume, Running
from cache_agent.node.desired_detail import (
    DesiredDetail,
    DesiredDetails,
    RefusedDocument,
    is_named,
)
from cache_agent.node.progress_text import phase
from cache_agent.store.roots import Roots
from cache_agent.store.values import Lease, StoredModel
from modelimage.errors import InvalidInput, NotFound, WeightyardError
from modelimage.reference import parse_image

# What is said of a desired model whose status has no message.
_WORDS: Final[dict[DesiredModelState, str]] = {
    "Pending": "not begun yet",
    "Waiting": "waiting for its turn",
    "Fetching": "being fetched",
    "Warming": "being read into memory",
    "Ready": "lost a moment ago, and fetched again",
    "Failed": "it can't be had",
}
_MOST_REFUSED: Final = 20
# Their pulls tell more than they do.
_FETCHING: Final = ("Pending", "Fetching")


def explain(
    text: str, activity: Activity, store: Roots, wanted: DesiredDetails
) -> list[ExplainView]:
    """Explain a pod (by UID, name, namespace/name), or an image or a desired model by its name. Raises NotFound."""
    # The most specific answer first: a waiting pod, then a lease, then what is here and what is to come.
    pods = activity.pods(text)
    if pods:
        return [_of_pod(each, activity) for each in pods]
    # A restart forgets activities but no leases.
    held = [lease for lease in store.leases.all() if _is_held_by(lease, text)]
    if held:
        return [_of_lease(lease, store) for lease in held]
    cached, desired = _cached(text, store), wanted.models
    named = _named(text, desired, cached)
    by_name = [each for each in named if is_named(each.status.name, text)]
    if by_name:
        keys = dict.fromkeys(each.status.model_key for each in named if each.status.model_key)
        cached = [model for key in keys for model in _cached(key, store)]
        named = [
            *named,
            *(each for each in desired if each not in named and each.status.model_key in keys),
        ]
    # A desired model's own name is no name of the store's: each model has the image that is desired under it.
    images = {each.status.model_key: each.status.image for each in by_name}
    shown = [
        (images.get(str(each.key)) or (text if not by_name else each.image)) for each in cached
    ]
    found = [
        *(
            _of_model(name, model, named, alone=shown.count(name) == 1)
            for name, model in zip(shown, cached, strict=True)
        ),
        *_coming(text, activity, named, cached),
        *islice(
            (_of_refused(each) for each in wanted.refused if _is_of(each, text)), _MOST_REFUSED
        ),
    ]
    if not found:
        raise NotFound(
            f"{text!r} is unknown on this node: no pod waits for it or uses it, "
            "it is not desired, and it is not cached",
            hint="See `weightyard ls` and `weightyard status`, which tells of documents that can't be used as well; "
            "for a pod, ask the agent of its own node.",
        )
    return found


def under_way(activity: Activity) -> list[ExplainView]:
    """Every pod that waits, and every running pull that no pod waits for."""
    pods = activity.waiting()
    # A pod's line has the progress of its pull.
    asked = {pod.image for pod in pods}
    pulls = [each for each in activity.running() if each.image not in asked]
    return [
        *(_of_pod(pod, activity) for pod in pods),
        *(_of_pull(f"image {each.image}", each) for each in pulls),
    ]


def _is_held_by(lease: Lease, text: str) -> bool:
    """Whether a lease is a pod's, given by UID, name or namespace/name, or another holder's of this name."""
    return text in (lease.holder.name, lease.pod, lease.pod.rpartition("/")[2]) and bool(text)


def _of_pod(pod: PodVolume, activity: Activity) -> ExplainView:
    subject = f"pod {pod.name or pod.pod}"
    if pod.published:
        return ExplainView(
            subject=subject, state="ready", image=pod.image, text="the model is mounted", since=pod.since
        )  # fmt: skip
    running = activity.running(pod.image)
    if running:
        return _of_pull(subject, running[0])
    state = "failed" if pod.said else "waiting"
    said = pod.said or "checking its access"
    return ExplainView(subject=subject, state=state, image=pod.image, text=said, since=pod.since)


def _of_pull(subject: str, running: Running) -> ExplainView:
    snapshot = running.pull.snapshot()
    return ExplainView(
        subject=subject,
        state="waiting",
        image=running.image,
        text=phase(snapshot),
        since=running.began,
        total=snapshot.total,
        done=snapshot.done,
        bytes_per_second=snapshot.rate,
        seconds_left=snapshot.seconds_left,
        sources={f"{tier} {name}": size for tier, name, size in snapshot.by_source},
    )


def _of_lease(lease: Lease, store: Roots) -> ExplainView:
    return ExplainView(
        subject=f"pod {lease.pod or lease.holder.name}",
        state="ready",
        image=_image_of(store, str(lease.model)),
        text="the model is mounted",
        since=lease.since,
    )


def _cached(text: str, store: Roots) -> list[StoredModel]:
    """The cached model of a key or an image, or each variant of an image."""
    try:
        return [store.models.find(text)]
    except InvalidInput:
        models = store.models
        return [each for each in models.all() if text in (each.image, *models.images_of(each.key))]
    except WeightyardError:
        return []


def _of_model(
    text: str, model: StoredModel, named: Sequence[DesiredDetail], *, alone: bool
) -> ExplainView:
    holders = ", ".join(str(lease.holder) for lease in model.leases)
    said = "the model is cached" + (f" and used by {holders}" if holders else ", not in use")
    by = [each.status for each in named if each.status.model_key == str(model.key)]
    # Such as that it isn't in memory, as it should be.
    remarks = {each.message for each in by if each.state == "Ready" and each.message}
    return ExplainView(
        subject=_subject(text or model.image, None if alone else model.variant),
        state="ready",
        image=model.image,
        text="; ".join([said, *sorted(remarks)]),
        since=model.added,
        total=model.size,
        done=model.size,
        desired_by=[each.name for each in by],
    )


def _named(
    text: str, desired: Sequence[DesiredDetail], cached: Sequence[StoredModel]
) -> list[DesiredDetail]:
    """The desired models of this name, of this image, or of these cached models."""
    image, keys = _canonical(text), {text, *(str(each.key) for each in cached)}
    return [
        each
        for each in desired
        if is_named(each.status.name, text)
        or each.status.image == image
        or each.status.model_key in keys
    ]


def _coming(
    text: str,
    activity: Activity,
    named: Sequence[DesiredDetail],
    cached: Sequence[StoredModel],
) -> Iterator[ExplainView]:
    """What isn't here as it should be: running pulls, pods that wait for none, desired models that aren't held."""
    own = _canonical(text)
    images = dict.fromkeys([own, *(each.status.image for each in named if each.status.image)])
    pulls = [
        each
        for image in images
        for each in activity.running(image)
        if not _has_brought(each, cached)
    ]
    for pull in pulls:
        subject = _subject(text if pull.image == own else pull.image)
        by = [each for each in named if _is_brought_by(each, pull)]
        failures = max((each.failures for each in by), default=0)
        view = _of_pull(subject, pull)
        yield replace(view, desired_by=[each.status.name for each in by], failures=failures)
    pulled = {each.image for each in pulls}
    for pod in activity.waiting():
        if pod.image in images and pod.image not in pulled:
            yield _of_pod(pod, activity)
    keys = {str(each.key) for each in cached}
    left = [each for each in named if not _is_told(each, pulls, keys)]
    yield from map(_of_desired, _alike(left))


def _has_brought(running: Running, cached: Sequence[StoredModel]) -> bool:
    """Whether a pull's model is among the cached ones: it is, for a moment before the pull has ended."""
    snapshot = running.pull.snapshot()
    # What was cached before it began is another model: the image's name has moved.
    brought = {each.variant for each in cached if each.added >= running.began}
    return (
        0 < snapshot.total <= snapshot.done
        and bool(brought)
        and running.variant in {None, *brought}
    )


def _is_told(detail: DesiredDetail, pulls: Sequence[Running], cached: Container[str]) -> bool:
    """Whether a pull or a cached model tells all of a desired model."""
    status = detail.status
    # The report is older than the store: what it calls ready may be gone by now, and the other way round.
    held = status.state == "Ready" or (status.state == "Fetching" and not status.reason)
    if held and status.model_key in cached:
        return True
    return status.state in _FETCHING and any(_is_brought_by(detail, pull) for pull in pulls)


def _is_brought_by(detail: DesiredDetail, pull: Running) -> bool:
    return (detail.status.image, detail.status.variant) == (pull.image, pull.variant)


def _alike(details: Sequence[DesiredDetail]) -> list[list[DesiredDetail]]:
    """Those of which the same is said, together: CachedModels may share a model."""
    found: dict[tuple[object, ...], list[DesiredDetail]] = {}
    for each in details:
        status = each.status
        said = (status.image, status.variant, status.state, status.reason, status.message)
        found.setdefault(said, []).append(each)
    return list(found.values())


def _of_desired(details: Sequence[DesiredDetail]) -> ExplainView:
    status = details[0].status
    left = status.seconds_left
    return ExplainView(
        subject=_subject(status.image or status.name, status.variant),
        state="failed" if status.state == "Failed" else "waiting",
        image=status.image or "",
        text=status.message or _WORDS[status.state],
        since=min((each.since for each in details if each.since), default=0.0),
        total=status.bytes_total or 0,
        done=status.bytes_done,
        bytes_per_second=float(status.bytes_per_second),
        seconds_left=None if left is None else float(left),
        desired_by=[each.status.name for each in details],
        reason=status.reason,
        failures=max(each.failures for each in details),
        retry_at=min(
            (each.retry_at for each in details if each.retry_at is not None), default=None
        ),
    )


def _is_of(refused: RefusedDocument, text: str) -> bool:
    return is_named(refused.name, text) or (bool(text) and _canonical(text) == refused.image)


def _of_refused(refused: RefusedDocument) -> ExplainView:
    name = refused.name or refused.image
    return ExplainView(
        subject=f"document {name}" + (f" in {refused.where}" if refused.where != name else ""),
        state="failed",
        image=refused.image,
        text=refused.why,
        reason="InvalidDocument",
        since=0.0,
    )


def _subject(image: str, variant: str | None = None) -> str:
    return f"image {image} ({variant})" if variant else f"image {image}"


def _canonical(text: str) -> str:
    """An image name in the store's spelling; what is none, such as a key, stays as it is."""
    try:
        return str(parse_image(text))
    except InvalidInput:
        return text


def _image_of(store: Roots, key: str) -> str:
    try:
        return store.models.find(key).image
    except WeightyardError:
        return key
