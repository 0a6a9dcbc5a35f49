"""Explains why a pod or an image is waiting, in words and numbers. Read-only."""

from __future__ import annotations

from cache_agent.api.wire import ExplainView
from cache_agent.node.activity import Activity, PodVolume, Running
from cache_agent.node.progress_text import Watched, describe
from cache_agent.store.roots import Roots
from cache_agent.store.values import Lease
from modelimage.errors import NotFound, WeightyardError


def explain(text: str, activity: Activity, store: Roots) -> list[ExplainView]:
    """Explain a pod (by UID, name, namespace/name) or an image. Raises NotFound."""
    # The most specific answer first: a waiting pod, then a lease, then a running pull, then the cache.
    pods = activity.pods(text)
    if pods:
        return [_of_pod(each, activity) for each in pods]
    # A restart forgets activities but no leases.
    held = [lease for lease in store.leases.all() if _is_held_by(lease, text)]
    if held:
        return [
            ExplainView(
                subject=f"pod {lease.pod or lease.holder.name}",
                state="ready",
                image=_image_of(store, str(lease.model)),
                text="the model is mounted",
                since=lease.since,
            )
            for lease in held
        ]
    running = activity.running(text)
    if running:
        return [_of_pull(f"image {text}", each, activity.clock()) for each in running]
    try:
        model = store.models.find(text)
    except WeightyardError as error:
        raise NotFound(
            f"{text!r} is unknown on this node: no pod waits for it or uses it, and it is not cached",
            hint="See `weightyard ls`; for a pod, ask the agent of its own node.",
        ) from error
    holders = ", ".join(str(lease.holder) for lease in model.leases)
    said = "the model is cached" + (f" and used by {holders}" if holders else ", not in use")
    return [
        ExplainView(
            subject=f"image {text}", state="ready", image=model.image, text=said, since=model.added,
            total=model.size, done=model.size,
        )
    ]  # fmt: skip


def under_way(activity: Activity) -> list[ExplainView]:
    """Every pod that waits, and every running pull that no pod waits for."""
    pods = activity.waiting()
    # A pod's line has the progress of its pull.
    asked = {pod.image for pod in pods}
    pulls = [each for each in activity.running() if each.image not in asked]
    now = activity.clock()
    return [
        *(_of_pod(pod, activity) for pod in pods),
        *(_of_pull(f"image {each.image}", each, now) for each in pulls),
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
        return _of_pull(subject, running[0], activity.clock())
    state = "failed" if pod.said else "waiting"
    said = pod.said or "checking its access"
    return ExplainView(subject=subject, state=state, image=pod.image, text=said, since=pod.since)


def _of_pull(subject: str, running: Running, now: float) -> ExplainView:
    snapshot = running.pull.snapshot()
    at_start = snapshot.resumed + snapshot.reused
    seconds = max(0.0, now - running.began)
    fetched = max(0, snapshot.done - at_start)
    rate = fetched / seconds if seconds else 0.0
    left = max(0, snapshot.total - snapshot.done)
    return ExplainView(
        subject=subject,
        state="waiting",
        image=running.image,
        text=describe(Watched(snapshot, at_start, seconds)),
        since=running.began,
        total=snapshot.total,
        done=snapshot.done,
        bytes_per_second=rate,
        seconds_left=left / rate if rate >= 1 else None,
        sources={f"{tier} {name}": size for tier, name, size in snapshot.by_source},
    )


def _image_of(store: Roots, key: str) -> str:
    try:
        return store.models.find(key).image
    except WeightyardError:
        return key
