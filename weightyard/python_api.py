"""The Python API: builds, pulls, plans and serves models, and asks this machine's cache. See docs/python.md.

What `weightyard.__all__` names is stable; everything else may change. Functions do what the command of the same name
does, with the same credentials and environment, and raise WeightyardError: its `hint` says what to do next, `retry`
whether the same call may succeed later. Safe for threads. Nothing is printed unless `progress` asks for it: None shows
bars on terminals and in notebooks, True also lines elsewhere, False nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from cache_agent.api.wire import ExplainView, LeaseBody, ModelView, PullBody
from cache_agent.daemon.cache_api import Cache as NodeApi
from cache_agent.daemon.cache_api import open_cache
from cache_agent.errors import NoStore
from cache_agent.leases.holders import ProcessName
from cache_agent.store.values import Holder, HolderKind
from modelimage.access import Access
from modelimage.errors import InvalidInput
from modelimage.reference import DEFAULT_TAG, parse_image
from modelimage.user_cache import user_cache
from weightyard.console import Console
from weightyard.given_workspace import GivenWorkspace, from_text, read_workspace
from weightyard.options import absolute_image, default_root, environment_access
from weightyard.pull_progress import follow
from weightyard.up import detach as background
from weightyard.up.agent_cache import AgentCache
from weightyard.up.process import own_identity
from weightyard.up.serve_plan import Target, check_start, plan_serving
from weightyard.up.start_inputs import built_workspace, chosen_hardware, unbuilt
from weightyard.up.state import WorkspaceDirectory, is_running
from weightyard.up.stop import stop_workspace
from workspace.sources import image_of

_STOP_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class BuiltVariant:
    """One variant of a built image: its name, the key that stores name it by, and its size in bytes."""

    name: str
    key: str
    size: int


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """A published image: its reference, its digest, the tags that name it or a variant, and its variants.

    `unchanged`: the tag named this very image before.
    """

    image: str
    digest: str
    tags: Mapping[str, str]
    variants: tuple[BuiltVariant, ...]
    unchanged: bool = False


@dataclass(frozen=True, slots=True)
class PulledModel:
    """A model in the cache, verified and durable. Sizes in bytes; `fetched` of them came for this call.

    `path` is read-only and stays as long as the model isn't evicted: see `Cache.lease`. `stale`: the registry was
    unreachable, so this is the model that the image last referred to.
    """

    image: str
    variant: str
    key: str
    path: Path
    size: int
    fetched: int
    stale: bool = False


@dataclass(frozen=True, slots=True)
class ServingPlan:
    """What `serve` would do here. Sizes in bytes.

    `to_build`: what must be built into an image first; all but `name` is known after that only. `command` and
    `environment` start the server; `context` is its context length in tokens, None for the engine's own. `not_chosen`:
    why more accurate variants aren't served; `no_effect`: fields of the Workspace that do nothing here.
    """

    name: str
    to_build: str | None = None
    image: str = ""
    variant: str = ""
    size: int = 0
    to_fetch: int = 0
    gpus: int = 0
    context: int | None = None
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    not_chosen: tuple[str, ...] = ()
    no_effect: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Server:
    """A running inference server, ready for requests at `url`; `model` is its name in them. Ends with the context."""

    name: str
    url: str
    model: str
    variant: str
    log: Path
    _directory: WorkspaceDirectory = field(repr=False)
    _supervisor: subprocess.Popen[bytes] = field(repr=False)

    @property
    def running(self) -> bool:
        """Whether it still runs."""
        state = self._directory.read()
        return state is not None and is_running(state)

    def stop(self, timeout: float = _STOP_SECONDS) -> None:
        """Stop it, and kill what is left after `timeout` seconds. Stopping it twice is fine."""
        _stop(self._directory, self._supervisor, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def build(
    source: str | Path,
    to: str,
    *,
    variants: Sequence[str] = (),
    evaluate: bool = False,
    max_perplexity_ratio: float | None = None,
    max_kl: float | None = None,
    calibration: str | None = None,
    calibration_samples: int | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    convert_pickle: bool = False,
    sbom: bool = False,
    provenance: bool = False,
    source_uri: str | None = None,
    revision: str | None = None,
    plain_http: Sequence[str] = (),
    ca_file: Path | None = None,
    progress: bool | None = None,
) -> BuiltImage:
    """Pack a checkpoint into an image: a directory, hf://, s3:// and so on, to a registry, oci:DIR or docker:NAME.

    `variants`: quantized ones beside the published weights, such as int8 and int4; a bound fails the build where one is
    worse than its source, and implies `evaluate`. `source_uri` and `revision` are recorded for a directory. An
    interrupted build resumes when it is called again.
    """
    # Imported here: the builder is an extra, and most programs only pull.
    from builder.build import BuildOptions, BuildTools  # noqa: PLC0415
    from builder.build import build as build_image  # noqa: PLC0415
    from builder.digest_cache import DigestCache  # noqa: PLC0415
    from builder.records import created_time  # noqa: PLC0415
    from builder.sources.datasets import calibration_file  # noqa: PLC0415
    from builder.sources.factory import open_source  # noqa: PLC0415
    from builder.variants import (  # noqa: PLC0415
        EvaluationChoices,
        QuantizeChoices,
        chosen_variants,
    )
    from weightyard.build_report import shown_result  # noqa: PLC0415
    from weightyard.build_targets import check_apart, open_target, published  # noqa: PLC0415

    target, access = parse_image(to), environment_access(plain_http, ca_file)
    check_apart(str(source), target)
    compared = EvaluationChoices(max_kl=max_kl, max_perplexity_ratio=max_perplexity_ratio)
    options = BuildOptions(
        variants=chosen_variants(tuple(variants)),
        include=tuple(include),
        exclude=tuple(exclude),
        convert_pickle=convert_pickle,
        quantize=QuantizeChoices(
            calibration=calibration_file(calibration) if calibration else None,
            calibration_samples=calibration_samples,
            evaluation=compared if evaluate or compared != EvaluationChoices() else None,
        ),
        created=created_time(os.environ.get("SOURCE_DATE_EPOCH")),
        sbom=sbom,
        provenance=provenance,
    )
    opened = open_source(str(source), os.environ, uri=source_uri, revision=revision)
    console, cache, before = _console(progress), user_cache(os.environ), published(target, access)
    tools = BuildTools(DigestCache(cache / "digests"), cache / "work", console)
    with console.resumable():
        result = build_image(opened, open_target(console, target, access), options, tools)
    document, _ = shown_result(result, target, before=before)
    return BuiltImage(
        document["image"] if target.tag else f"{document['image']}:{DEFAULT_TAG}",
        document["digest"],
        document["tags"],
        tuple(BuiltVariant(r.variant, str(r.key), r.size) for r in result.records),
        unchanged=document["unchanged"],
    )


def pull(
    image: str,
    *,
    variant: str | None = None,
    root: Path | None = None,
    plain_http: Sequence[str] = (),
    ca_file: Path | None = None,
    progress: bool | None = None,
) -> PulledModel:
    """Bring an image's model into this machine's cache, verified; through the agent if one runs.

    `variant`: None is the image's own. `root`: the cache's directory, as `--root`.
    """
    cache = Cache(root, plain_http=plain_http, ca_file=ca_file)
    return cache.pull(image, variant=variant, progress=progress)


def plan(
    model: str | Path | Mapping[str, Any],
    *,
    name: str | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    cpu: bool = False,
    python: Path | None = None,
    root: Path | None = None,
    plain_http: Sequence[str] = (),
    ca_file: Path | None = None,
) -> ServingPlan:
    """What `serve` would do with the same arguments; starts, fetches and writes nothing."""
    start = _Start.of(model, name, host, port, cpu=cpu, python=python, root=root, progress=False)
    access = environment_access(plain_http, ca_file)
    workspace = start.given.workspace
    program = check_start(workspace, start.target)
    to_build = unbuilt(start.given)
    if to_build is not None:
        return ServingPlan(workspace.name, to_build)
    cache = AgentCache(start.target.root, access, start.console)
    found = plan_serving(
        workspace, absolute_image(image_of(workspace)), cache, start.target, program
    )
    launch = found.launch
    return ServingPlan(
        launch.name, None, found.image, launch.variant, found.size, found.missing, launch.gpus,
        launch.context, (*program.command, *launch.args),
        {each.name: each.value or "" for each in launch.env}, tuple(launch.reasons), found.no_effect,
    )  # fmt: skip


def serve(
    model: str | Path | Mapping[str, Any],
    *,
    name: str | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    cpu: bool = False,
    python: Path | None = None,
    root: Path | None = None,
    start_timeout: float | None = None,
    plain_http: Sequence[str] = (),
    ca_file: Path | None = None,
    progress: bool | None = None,
) -> Server:
    """Serve a model here, and return once it is ready: `with serve(…) as server:` stops it at the end.

    `model`: an image, hf://ORG/NAME, a checkpoint's directory, or a Workspace as a file or a document. `port` 0 takes a
    free one. The server runs in the background, listed by `weightyard ps`; it outlives this program unless it is
    stopped. Interrupted, it is stopped.
    """
    start = _Start.of(model, name, host, port, cpu=cpu, python=python, root=root, progress=progress)
    access = environment_access(plain_http, ca_file)
    # Before anything is fetched or built.
    check_start(start.given.workspace, start.target)
    target = start.target
    workspace = built_workspace(start.given, root=target.root, access=access, console=start.console)
    directory = WorkspaceDirectory(target.root, workspace.name)
    kept = directory.keep_document(json.dumps(workspace.to_document()))
    options = {
        "--root": target.root, "--host": host, "--port": port, "--python": target.python,
        "--start-timeout": start_timeout, "--ca-file": ca_file,
    }  # fmt: skip
    words = [str(w) for n, v in options.items() if v is not None for w in (n, v)]
    words += [word for each in plain_http for word in ("--plain-http", each)]
    with background.start(["up", str(kept), *words, *(["--cpu"] if cpu else [])], directory) as run:
        try:
            state = background.follow(run, directory, start.console)
        except BaseException:
            _stop(directory, run.process, _STOP_SECONDS)
            raise
    return Server(
        state.name, state.url, state.served_name, state.variant, directory.log, directory, run.process
    )  # fmt: skip


class Cache:
    """This machine's model cache at `root` (None: where the commands look), through its agent if one runs.

    Holds nothing open between calls: without an agent a store has one user at a time.
    """

    def __init__(
        self,
        root: Path | None = None,
        *,
        plain_http: Sequence[str] = (),
        ca_file: Path | None = None,
    ) -> None:
        self.root = Path(root).absolute() if root else default_root(os.environ)
        self._access: Access = environment_access(plain_http, ca_file)

    def models(self) -> list[ModelView]:
        """The cached models; none where there is no store yet."""
        try:
            with self._open() as cache:
                return cache.models()
        except NoStore:
            return []

    def pull(
        self, image: str, *, variant: str | None = None, progress: bool | None = None
    ) -> PulledModel:
        """Bring an image's model into the cache."""
        console = _console(progress)
        body = PullBody(image=absolute_image(image), variant=variant)
        with open_cache(self.root, self._access, create=True) as cache:
            events = cache.pull(body)
            # Interrupted, the pull is cancelled; its verified bytes stay for the next one.
            with closing(events):
                done = follow(console, image, events)
        path = Path(done.path)
        return PulledModel(
            done.image, done.variant, done.key, path, done.size, done.fetched, done.stale
        )

    @contextmanager
    def lease(self, model: str) -> Iterator[Path]:
        """The directory of a cached model, by key or image, kept from eviction while the context lasts.

        It ends with this process too, however that ends. Raises NotFound.
        """
        me = own_identity()
        holder = Holder(HolderKind.PROCESS, str(ProcessName(me.pid, str(me.start), me.boot)))
        with self._open() as cache:
            lease = cache.lease(LeaseBody(model=model, holder=str(holder)))
            (path,) = (Path(each.path) for each in cache.models() if each.key == lease.model)
        try:
            yield path
        finally:
            with self._open() as cache:
                cache.release(lease.id)

    def pin(self, model: str, *, pinned: bool = True) -> ModelView:
        """Keep a model from eviction until it is unpinned, or with `pinned=False` no longer. Raises NotFound."""
        with self._open() as cache:
            return cache.pin(model, pinned=pinned)

    def remove(self, model: str) -> int:
        """Remove a model; the bytes that it freed. Raises NotFound, InUse."""
        with self._open() as cache:
            return cache.remove(model).freed

    def explain(self, subject: str) -> list[ExplainView]:
        """What a pod, an image or a desired model waits for, or why it failed. Raises NotFound."""
        with self._open() as cache:
            return cache.explain(subject)

    def status(self) -> dict[str, Any]:
        """The node's NodeCache document: its models, space, and progress towards what is desired."""
        with self._open() as cache:
            return cache.status().to_document()

    @contextmanager
    def _open(self) -> Iterator[NodeApi]:
        with open_cache(self.root, self._access, create=False) as cache:
            yield cache


@dataclass(frozen=True, slots=True)
class _Start:
    """What `plan` and `serve` are asked for, read and checked."""

    given: GivenWorkspace
    target: Target
    console: Console

    @classmethod
    def of(
        cls,
        model: str | Path | Mapping[str, Any],
        name: str | None,
        host: str,
        port: int,
        *,
        cpu: bool,
        python: Path | None,
        root: Path | None,
        progress: bool | None,
    ) -> Self:
        console = _console(progress)
        given = _given(model, name)
        hardware = chosen_hardware(console, given.workspace, cpu=cpu)
        where = Path(root).absolute() if root else default_root(os.environ)
        target = Target(where, host, port, Path(python or sys.executable), hardware)
        return cls(given, target, console)


def _given(model: str | Path | Mapping[str, Any], name: str | None) -> GivenWorkspace:
    if not isinstance(model, Mapping):
        return read_workspace(str(model), name=name)
    if name is not None:
        raise InvalidInput("a Workspace's document has a name", hint="Leave `name` out.")
    text = json.dumps(dict(model))
    return GivenWorkspace(from_text(text, "the document", Path(), None))


def _stop(
    directory: WorkspaceDirectory, supervisor: subprocess.Popen[bytes], timeout: float
) -> None:
    stop_workspace(directory, timeout=timeout)
    # A child of this process, which may live on: nobody else would reap it.
    supervisor.wait()


class _Shown(Console):
    """A console on stderr whose bars also move in notebooks."""

    @property
    def moving(self) -> bool:
        return (self.err.isatty() or _in_notebook()) and not self.quiet


def _console(progress: bool | None) -> Console:
    console = _Shown()
    console.configure(quiet=progress is False or (progress is None and not console.moving))
    return console


def _in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel, as IPython tells; it is never imported for that."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return type(shell).__name__ == "ZMQInteractiveShell"
