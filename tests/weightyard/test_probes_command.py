"""`weightyard probes`: a file is tried against servers, and what is attached to an image is what a rollout asks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelimage.errors import InvalidInput, NotFound
from modelimage.layout import Layout
from modelimage.referrers import ArtifactFile, attach, make_artifact
from tests.builder.building import weightyard_here
from tests.modelimage.conformance import put_image
from tests.servers.httpserver import Handler, LoopbackServer
from workspace.controller.loops.probe_sources import attached_probes
from workspace.probes.probe_set import ARTIFACT_TYPE

PROBES = {
    "probes": [
        {"name": "capital", "prompt": "The capital of France is", "contains": "Paris"},
        {"name": "same", "messages": [{"role": "user", "content": "hi"}], "agreement": {}},
    ]
}


class _Answering(Handler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        owner: Engine = self.server.owner  # type: ignore[attr-defined]
        owner.asked.append({"path": self.path, **asked})
        status, document = owner.answers(asked)
        self.answer(status, json.dumps(document).encode(), {"Content-Type": "application/json"})


class Engine(LoopbackServer):
    """A server of the OpenAI API."""

    HANDLER = _Answering

    def __init__(self, text: str = " Paris", status: int = 200) -> None:
        self.asked: list[dict[str, Any]] = []
        self.answers: Callable[[Any], tuple[int, Any]] = lambda asked: (status, said(asked, text))


def said(asked: dict[str, Any], text: str) -> Any:
    if "prompt" in asked:
        return {"choices": [{"text": text}]}
    tokens = [{"token": text, "logprob": -0.1, "top_logprobs": []}]
    return {"choices": [{"message": {"content": text}, "logprobs": {"content": tokens}}]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "probes.yaml"
    path.write_text(json.dumps(PROBES))
    return path


Run = Callable[..., tuple[int, Any]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `weightyard probes`, for the exit code and what it writes."""

    def running(*arguments: str | Path) -> tuple[int, Any]:
        done = weightyard_here(capsys, "--json", "probes", *arguments)
        return done.code, json.loads(done.out) if done.out else done.err

    return running


def results(document: Any) -> dict[str, str]:
    return {each["probe"]: each["result"] for each in document}


def test_two_servers_are_compared_as_in_a_rollout(file: Path, run: Run) -> None:
    with Engine() as new, Engine() as serving:
        code, found = run("run", file, "--url", new.url, "--serving", f"{serving.url}/v1/")
        assert (code, results(found)) == (0, {"capital": "passed", "same": "passed"})
        assert [each["path"] for each in new.asked] == ["/v1/completions", "/v1/chat/completions"]
        assert len(serving.asked) == 1


def test_a_wrong_answer_ends_with_its_own_exit_code(file: Path, run: Run) -> None:
    with Engine(" London") as new, Engine() as serving:
        code, found = run("run", file, "--url", new.url, "--serving", serving.url, "--model", "m")
        assert (code, results(found)["capital"]) == (18, "failed")
        assert next(each["answer"] for each in found if each["probe"] == "capital") == " London"
        assert new.asked[0]["model"] == "m"
        alone = run("run", file, "--url", new.url)
        assert (alone[0], results(alone[1])) == (18, {"capital": "failed", "same": "no answer"})


def test_a_server_that_answers_no_probe(file: Path, run: Run) -> None:
    with Engine(status=503) as busy:
        code, found = run("run", file, "--url", busy.url)
    assert (code, results(found)) == (18, {"capital": "no answer", "same": "no answer"})
    for text in ("http://", "127.0.0.1:8000", "localhost", "ftp://127.0.0.1", "http://[::1"):
        code, error = run("run", file, "--url", text)
        assert code == 2
        assert "not a URL" in error


def test_a_server_that_nobody_started_is_no_failed_probe(file: Path, run: Run) -> None:
    with Engine() as gone:
        url = gone.url
    with Engine() as new:
        for arguments in (("--url", url), ("--url", new.url, "--serving", url)):
            code, error = run("run", file, *arguments)
            assert (code, json.loads(error)["message"]) == (11, f"can't connect to {url}")


def test_a_file_that_is_wrong_says_where(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "probes.yaml"
    path.write_text("probes: [{name: p, prompt: x, regex: '(?=a)'}]")
    code, error = run("run", path, "--url", "http://127.0.0.1:9")
    assert code != 0
    assert "look-around" in error


def test_what_is_attached_is_what_a_rollout_asks(tmp_path: Path, file: Path, run: Run) -> None:
    layout = Layout(tmp_path / "image")
    subject = put_image(layout, "v1")
    image = f"registry.example/team/model@{subject.digest}"
    with pytest.raises(NotFound, match="no probes"):
        attached_probes(layout, image)
    code, found = run("attach", f"oci:{layout.path}:v1", file)
    assert (code, found["probes"], found["subject"]) == (0, 2, str(subject.digest))
    assert [each.name for each in attached_probes(layout, image).probes] == ["capital", "same"]
    # The newest is asked, and what isn't a probes file is refused.
    for created, files in (("2000", [b"older"]), ("9998", [b"\xff"]), ("9999", [b"{}", b"[]"])):
        listed = [ArtifactFile(f"f{n}", "application/yaml", each) for n, each in enumerate(files)]
        annotations = {"org.opencontainers.image.created": f"{created}-01-01T00:00:00Z"}
        attach(layout, make_artifact(subject, ARTIFACT_TYPE, listed, annotations))
        if created == "2000":
            assert len(attached_probes(layout, image).probes) == 2
        else:
            with pytest.raises(InvalidInput):
                attached_probes(layout, image)
