"""A real vLLM on the CPU that serves a model directory, as field practice starts it."""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import urllib3

from tests.servers.ports import free_port
from tests.servers.process import ContextServer, ServerProcess, child_environment


class VllmServer(ContextServer):
    """vLLM's OpenAI server on `model`. It takes some 40 s to start: share one among tests."""

    NAME = "model"

    def __init__(self, model: Path, *options: str, max_model_len: int = 512) -> None:
        self._model = model
        self._options = (*options, "--max-model-len", str(max_model_len))

    def _start(self, stack: ExitStack) -> None:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vllm-")))
        self._http = stack.enter_context(urllib3.PoolManager(retries=False))
        self.url = f"http://127.0.0.1:{free_port()}"
        self._process = stack.enter_context(
            ServerProcess(self._command(), log=root / "log", environment=self._environment(root))
        )
        self._process.wait_for(self._is_healthy, what="healthy answer")

    def complete(self, prompt: str, *, max_tokens: int = 8) -> str:
        """The greedy completion of `prompt`."""
        body = {"model": self.NAME, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
        answer = self._http.request("POST", f"{self.url}/v1/completions", json=body)
        choices: list[dict[str, Any]] = json.loads(answer.data)["choices"]
        return str(choices[0]["text"])

    def log_text(self) -> str:
        """vLLM's whole log."""
        return self._process.log_text()

    def _command(self) -> list[str]:
        port = self.url.rpartition(":")[2]
        return [
            sys.executable, "-m", "vllm.entrypoints.openai.api_server",
            "--model", str(self._model), "--served-model-name", self.NAME,
            "--host", "127.0.0.1", "--port", port,
            "--enforce-eager", "--dtype", "bfloat16", *self._options,
        ]  # fmt: skip

    def _environment(self, home: Path) -> dict[str, str]:
        return child_environment(
            home,
            VLLM_CPU_KVCACHE_SPACE="1",
            VLLM_NO_USAGE_STATS="1",
            DO_NOT_TRACK="1",
            HF_HUB_OFFLINE="1",
        )

    def _is_healthy(self) -> bool:
        try:
            return self._http.request("GET", f"{self.url}/health", timeout=2.0).status == 200
        except urllib3.exceptions.HTTPError:
            return False
