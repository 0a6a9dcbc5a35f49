"""Fetches the files of one model image into the store: reuse, claim, reserve, fetch, wait for other pulls' downloads.

Concurrent pulls share downloads: a node downloads each file once, and a second pull waits for it and raises its
priority.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from cache_agent.fetch.admission import AdmissionGroup
from cache_agent.fetch.download import Download, Downloads, followed_layers
from cache_agent.fetch.pull_services import Progressing, PullServices
from cache_agent.fetch.range_planner import plan_queues, unique_files
from cache_agent.fetch.reuse_check import ReuseCheck
from cache_agent.sources.source import Source
from cache_agent.store.reservations import Reservation
from cache_agent.store.store import Store
from modelimage.record import Record, RecordFile
from modelimage.repository import ImageReader
from modelimage.resolve import ResolvedModel

# Partials that a pull has open at the same time.
_OPEN_FILES: Final = 512


@dataclass(frozen=True, slots=True)
class ModelImage:
    """A model image, read with one caller's credentials."""

    reader: ImageReader
    resolved: ResolvedModel


@dataclass
class ModelFetch:
    """Fetches one model image, in the thread of its pull. `sources`: fastest first.

    The caller holds the record's files in the store: else a reused file could be evicted before it is published.
    """

    store: Store
    image: ModelImage
    sources: Sequence[Source]
    downloads: Downloads
    pull: PullServices
    _total: int = field(init=False)
    _reused: int = 0
    _parts: Sequence[Progressing] = ()

    def __post_init__(self) -> None:
        self._total = sum(file.size for file in unique_files(self.record.files))

    @property
    def record(self) -> Record:
        return self.image.resolved.record

    def run(self) -> None:
        """Bring every file of the record into the store. Raises a pull's errors."""
        pull, repository = self.pull, self.pull.repository
        reuse = ReuseCheck(self.store, repository, self.image.reader, self.image.resolved.layers)
        left, sources = unique_files(self.record.files), self.sources
        while left:
            pull.check_cancelled()
            left = [file for file in left if not self._reuse(reuse, file)]
            mine, theirs = self.downloads.claim(
                self.store, left, repository, damaged=reuse.damaged, hurry=pull.hurry
            )
            complete = self._parts
            self._show([*complete, *mine, *theirs])
            # Own downloads first, then wait: two pulls that waited for each other's files would never end.
            if mine:
                self._download(mine, sources)
            # A second round fetches only what reuse refused: now nothing but the image's own layers will do.
            sources = [source for source in sources if source.authorizes]
            for download in theirs:
                self._wait_for(download)
            # Files that other pulls downloaded are reused from the store if authorized, else downloaded by this pull.
            reuse.rebuilt.update(followed_layers(mine))
            # So are own files with bytes from a source that proves nothing; if refused, the image itself is read.
            settled = [f for f in mine if f.proven or reuse.allowed(self.record, f.file)]
            self._show([*complete, *settled])
            # Another pull's download names the layer of its own image; use this record's file instead.
            named = {file.digest: file for file in left}
            done = set(settled)
            left = [named[f.file.digest] for f in (*theirs, *mine) if f not in done]

    def _show(self, parts: Sequence[Progressing]) -> None:
        self._parts = parts
        self.pull.show(total=self._total, reused=self._reused, parts=parts)

    def _reuse(self, reuse: ReuseCheck, file: RecordFile) -> bool:
        allowed = reuse.allowed(self.record, file)
        if allowed:
            self._reused += file.size
            self._show(self._parts)
        return allowed

    def _download(self, downloads: list[Download], sources: Sequence[Source]) -> None:
        try:
            self._fetch(downloads, sources)
        finally:
            # Closed before released: the next pull that claims a file opens the same partial.
            for download in downloads:
                download.close()
            self.downloads.release(self.store, downloads)

    def _fetch(self, downloads: list[Download], sources: Sequence[Source]) -> None:
        store, pull = self.store, self.pull
        need = sum(each.file.size - store.partials.size(each.identity) for each in downloads)
        resumes = {each.identity.hex for each in downloads}
        with store.space.reserve(
            need, evicting=pull.request.evicting, resumes=resumes
        ) as reservation:
            # The journal before the partials: recovery removes partials that no journal names.
            store.partials.begin(self.record)
            # In parts: each open partial takes a descriptor.
            for start in range(0, len(downloads), _OPEN_FILES):
                self._fetch_some(downloads[start : start + _OPEN_FILES], sources, reservation)

    def _fetch_some(
        self, downloads: Sequence[Download], sources: Sequence[Source], reservation: Reservation
    ) -> None:
        pull, missing = self.pull, {}
        group = AdmissionGroup(self.store.files)
        # Only if some bytes prove nothing will the reuse check need the layers' digests.
        proving = all(source.authorizes for source in sources)
        for download in downloads:
            download.group = group
            download.open(reservation)
            # A partial is named after its file only: a pull from another repository may have started it.
            if download.resumed:
                download.mark_unproven()
            layer = download.file.layer
            # Of a layer with several files, of which there may be thousands, no download could compute the digest.
            if (download.resumed or not proving) and len(self.record.layer_files(layer)) == 1:
                download.follow_layer(self.record.recipe(layer))
            pull.check_cancelled()
            missing[download.file.digest] = download.missing()
        pull.run(
            plan_queues([download.file for download in downloads], missing),
            sources,
            {download.file.digest: download for download in downloads},
        )
        group.flush()
        for download in downloads:
            download.close()

    def _wait_for(self, download: Download) -> None:
        """Wait for another pull's download to end, raising it to this pull's priority. Raises Cancelled."""
        # Raised each time: that pull may not have created its job yet.
        while not download.ended.wait(0.1):
            download.hurry(self.pull.request.priority)
            self.pull.check_cancelled()
