"""A server that is started like vLLM and behaves as FAKE_ENGINE says: what lifecycle tests run instead of a model.

Found by `python -m vllm.entrypoints.openai.api_server` with this folder first in PYTHONPATH. FAKE_ENGINE is a comma-
separated list: `slow` opens its port only once the file FAKE_ENGINE_GATE is there; `dies` ends at once as a failing
vLLM does; `stubborn` ignores SIGTERM; `worker` starts a child that ignores SIGTERM too;
`still` does nothing, ever.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FAILURE = """\
(EngineCore pid=7) ERROR 11-23 21:38:05 [core.py:906] Traceback (most recent call last):
(EngineCore pid=7) ERROR 11-23 21:38:05 [core.py:906] ValueError: No available memory for the cache blocks.
(APIServer pid=6) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""
IDLE_METRICS = "vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n"
WORKER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"


def main() -> None:
    """Serve until told otherwise."""
    behaviour = os.environ.get("FAKE_ENGINE", "").split(",")
    options, _ = arguments().parse_known_args()
    print("INFO 11-23 21:37:58 [runner.py:68] Starting to load model", flush=True)
    if "dies" in behaviour:
        sys.stderr.write(FAILURE)
        sys.exit(1)
    if "still" in behaviour:
        threading.Event().wait()
    if "stubborn" in behaviour:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if "worker" in behaviour:
        with subprocess.Popen([sys.executable, "-c", WORKER], stdout=subprocess.PIPE) as worker:
            assert worker.stdout is not None
            worker.stdout.readline()
            serve(options, behaviour)
    serve(options, behaviour)


def arguments() -> argparse.ArgumentParser:
    """The arguments that matter here; the rest is taken and ignored."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--served-model-name", default="model")
    return parser


def serve(options: argparse.Namespace, behaviour: list[str]) -> None:
    """Answer /health, /v1/models and /metrics, and every question with FAKE_ENGINE_ANSWER."""

    tokens: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            models = {"data": [{"id": options.served_model_name}]}
            metrics = f"{IDLE_METRICS}vllm:generation_tokens_total {len(tokens)}.0\n"
            said = {"/v1/models": json.dumps(models), "/metrics": metrics}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(said.get(self.path, "").encode())

        def do_POST(self) -> None:
            tokens.append("one")
            said = {"text": os.environ.get("FAKE_ENGINE_ANSWER", "")}
            body = json.dumps({"choices": [said], "usage": {"completion_tokens": 1}}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

    while "slow" in behaviour and not Path(os.environ["FAKE_ENGINE_GATE"]).exists():
        time.sleep(0.02)
    assert Path(options.model, "weightyard.json").is_file()
    print(
        "INFO 11-23 21:38:00 [core.py:402] init engine (profile, create kv cache) took 0.56 s",
        flush=True,
    )
    ThreadingHTTPServer((options.host, options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
