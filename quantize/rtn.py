"""The built-in engine: rounds a whole checkpoint to nearest, several blocks and shards at a time.

Workers draw blocks from one queue over all shards. A separate thread does what waits for the disk, in order of
submission, while the workers go on with the next block or shard. A finished shard is never converted again.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

from quantize.checkpoint import Checkpoint
from quantize.plan import Conversion, Plan, ShardPlan
from quantize.sqnr import Energies
from quantize.staging_dir import Staging
from quantize.stream import Block, BlockResult, ShardFiles, blocks

# Called with source bytes done and source bytes in all, from any thread, one call at a time.
Progress = Callable[[int, int], None]

# Each worker holds up to 20 MB of buffers.
MAX_THREADS: Final = 8
# Shards that may wait for the disk besides those in progress. Each worker keeps at most one unfinished, so a worker
# that waits always waits for a shard of the disk thread: no deadlock.
AHEAD: Final = 4
# Source bytes converted between two requests to start writeback.
WRITE_BACK_BYTES: Final = 64 << 20


def default_threads() -> int:
    """One thread per core that this process may use, at most MAX_THREADS."""
    return max(1, min(len(os.sched_getaffinity(0)), MAX_THREADS))


def convert_shards(
    checkpoint: Checkpoint,
    plan: Plan,
    staging: Staging,
    *,
    threads: int,
    progress: Progress | None = None,
) -> dict[str, Energies]:
    """Write all shards that the staging directory doesn't hold yet; returns the energies of every matrix.

    Raises BrokenWeights, InvalidCheckpoint, OSError.
    """
    # One thread: its order keeps a shard open until its last writeback.
    with ThreadPoolExecutor(1, thread_name_prefix="quantize-disk") as disk:
        unfinished = threading.Semaphore(threads + AHEAD)
        run = _Run(checkpoint.root, plan, staging, progress, disk=disk, unfinished=unfinished)
        try:
            with ThreadPoolExecutor(threads, thread_name_prefix="quantize") as pool:
                try:
                    for future in [pool.submit(run.work) for _ in range(threads)]:
                        future.result()
                except BaseException:
                    # Ctrl-C comes to this thread alone; without this the pool would convert all that is left.
                    run.stop()
                    raise
            return run.result()
        finally:
            # Disk first: its thread may still use descriptors that `close` closes.
            disk.shutdown(cancel_futures=True)
            run.close()


class _OpenShard:
    """One shard in progress: its descriptors, the number of blocks left, and their measurements."""

    def __init__(self, shard: ShardPlan, source: Path, temporary: Path, plan: Plan) -> None:
        self.plan = shard
        self.temporary = temporary
        self.left = sum(1 for _ in blocks(shard, plan.format))
        self.results: list[BlockResult] = []
        self._unwritten = 0
        self._source = os.open(source, os.O_RDONLY)
        try:
            self._target = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        # `close` is called only for what was made.
        except OSError:
            os.close(self._source)
            raise
        self.files = ShardFiles(self._source, self._target, shard, plan.numeric)

    def is_due(self, cost: int) -> bool:
        """Whether enough was converted to start writeback. Threads may lose a count: nothing depends on it."""
        self._unwritten += cost
        if self._unwritten < WRITE_BACK_BYTES:
            return False
        self._unwritten = 0
        return True

    def close(self) -> None:
        os.close(self._source)
        os.close(self._target)


class _Run:
    """State shared by the workers. Under the lock: memory, and opening the next shard's files."""

    def __init__(
        self,
        root: Path,
        plan: Plan,
        staging: Staging,
        progress: Progress | None,
        *,
        disk: ThreadPoolExecutor,
        unfinished: threading.Semaphore,
    ) -> None:
        self._root = root
        self._plan = plan
        self._staging = staging
        self._progress = progress
        self._disk = disk
        self._unfinished = unfinished
        self._submitted: list[Future[Mapping[str, Energies]]] = []
        self._lock = threading.Lock()
        self._queue = self._draw()
        self._open: dict[str, _OpenShard] = {}
        self._total = sum(b.cost for s in plan.shards for b in blocks(s, plan.format))
        self._done = 0
        self._failed = False
        self._energies: dict[str, Energies] = {}

    def stop(self) -> None:
        """Let every worker end at its next block."""
        self._failed = True

    def work(self) -> None:
        """Convert blocks until none is left or another worker failed."""
        try:
            while (drawn := self._next()) is not None:
                shard, block = drawn
                result = shard.files.run(block, self._plan.group)
                # Before the block is recorded: the disk thread works in order, so the shard is still open at that time.
                if shard.is_due(block.cost):
                    self._submit(self._write_back, shard)
                if self._record(shard, result):
                    self._submit(self._finish, shard)
        except BaseException:
            self.stop()
            raise

    def result(self) -> dict[str, Energies]:
        """The energies of every matrix, once the disk thread is done. Raises its OSError."""
        for task in self._submitted:
            self._energies |= task.result()
        return self._energies

    def close(self) -> None:
        """Close the shards that a failure left open."""
        for shard in self._open.values():
            shard.close()

    def _draw(self) -> Iterator[tuple[_OpenShard, Block]]:
        for plan in self._plan.shards:
            # Only `finish` gives a shard its name: it is converted and durable.
            if (self._staging.directory / plan.name).exists():
                self._skip(plan)
                continue
            shard = self._begin(plan)
            # A shard without blocks: no worker would ever finish it.
            if shard.left == 0:
                self._submit(self._finish, shard)
            for block in blocks(plan, self._plan.format):
                yield shard, block

    def _begin(self, plan: ShardPlan) -> _OpenShard:
        # Waits under the lock, which the disk thread doesn't need for its release.
        self._unfinished.acquire()
        temporary = self._staging.directory / f"{plan.name}.tmp"
        shard = _OpenShard(plan, self._root / plan.name, temporary, self._plan)
        self._open[plan.name] = shard
        shard.files.begin(self._plan.format)
        return shard

    def _skip(self, plan: ShardPlan) -> None:
        document = json.loads((self._staging.directory / f"{plan.name}.sqnr").read_bytes())
        self._energies |= {name: Energies(*pair) for name, pair in document.items()}
        self._advance(sum(block.cost for block in blocks(plan, self._plan.format)))

    def _next(self) -> tuple[_OpenShard, Block] | None:
        with self._lock:
            # Generators aren't thread-safe.
            return None if self._failed else next(self._queue, None)

    def _record(self, shard: _OpenShard, result: BlockResult) -> bool:
        """Record a block; returns whether it was its shard's last."""
        with self._lock:
            shard.results.append(result)
            shard.left -= 1
            self._advance(result.block.cost)
            # Decided under the lock: of two last blocks, exactly one writes the shard.
            return shard.left == 0

    def _advance(self, cost: int) -> None:
        self._done += cost
        if self._progress is not None:
            self._progress(self._done, self._total)

    def _submit(
        self, task: Callable[[_OpenShard], Mapping[str, Energies]], shard: _OpenShard
    ) -> None:
        """Submit a task to the disk thread, which runs them in order."""
        self._submitted.append(self._disk.submit(task, shard))

    def _write_back(self, shard: _OpenShard) -> Mapping[str, Energies]:
        shard.files.write_back()
        return {}

    def _finish(self, shard: _OpenShard) -> Mapping[str, Energies]:
        """Make a shard durable; returns its measurements. Must not take the lock:
        workers hold it while waiting for this thread."""
        try:
            measured = _energies(shard.results)
            pairs = {name: (each.signal, each.error) for name, each in measured.items()}
            # Before the shard gets its name: a finished shard always has its measurements.
            self._staging.write(f"{shard.plan.name}.sqnr", json.dumps(pairs).encode())
            self._staging.finish(shard.temporary, shard.plan.name)
            self._open.pop(shard.plan.name).close()
        except BaseException:
            self._failed = True
            raise
        finally:
            # In any case, or a waiting worker would never end.
            self._unfinished.release()
        return measured


def _energies(results: list[BlockResult]) -> Mapping[str, Energies]:
    """Exact sums per matrix, independent of the order in which threads finished."""
    found: dict[str, list[BlockResult]] = defaultdict(list)
    for result in results:
        if isinstance(result.block.job, Conversion):
            found[result.block.job.matrix.module].append(result)
    return {
        module: Energies(
            math.fsum(each.signal for each in every), math.fsum(each.error for each in every)
        )
        for module, every in found.items()
    }
