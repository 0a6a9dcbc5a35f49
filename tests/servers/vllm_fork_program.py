"""Imports vLLM once, then forks a server for each request. Run as a program by `tests/servers/vllm_forks.py`.

A request is a line of JSON with `module`, `arguments`, `environment` and `log`; the answer is a line with the `pid`.
The end of the input ends the program.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
# What a server and its processes import; whatever is missing here they import themselves.
MODULES = (
    "vllm.entrypoints.launchers.api_server.entry", "vllm.v1.engine.async_llm", "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor", "vllm.v1.worker.cpu_worker", "vllm.model_executor.models.registry",
)  # fmt: skip


def main() -> None:
    # Libraries print while they are imported; only answers may reach the pipe.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for module in MODULES:
        importlib.import_module(module)
    _share_imports()
    # The kernel reaps the servers, so that their process ids vanish when they end.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if not pid:
            answers.close()
            _serve(request)
        # By both: whoever comes first, the group is there when the answer is.
        _lead_group(pid)
        print(json.dumps({"pid": pid}), file=answers, flush=True)


def _share_imports() -> None:
    """Lets vLLM's own processes be forks too. On a CPU it spawns them, to give each other OpenMP settings."""
    from vllm.model_executor.models import registry  # noqa: PLC0415 - imported above, where output is redirected

    context = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: context  # type: ignore[assignment]
    # It looks at model classes in processes of their own, so that these don't initialize CUDA in the server.
    registry._run_in_subprocess = _call  # type: ignore[assignment]


def _call(function: Callable[[], T]) -> T:
    return function()


def _lead_group(pid: int) -> None:
    """Makes a process the leader of its own group; one that has ended already is none."""
    with contextlib.suppress(ProcessLookupError):
        os.setpgid(pid, pid)


def _serve(request: dict[str, Any]) -> None:
    """Becomes the server; never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _lead_group(0)
    log = os.open(request["log"], os.O_CREAT | os.O_WRONLY)
    for number in (1, 2):
        os.dup2(log, number)
    os.environ.update(request["environment"])
    sys.argv = [request["module"], *request["arguments"]]
    code = 1
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    except BaseException:  # noqa: BLE001 - the end of the process: what went wrong goes to its log
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
