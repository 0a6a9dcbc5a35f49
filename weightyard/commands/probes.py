"""`weightyard probes`: tries a probes file against servers, and attaches one to a model image."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
import urllib3

from modelimage import durable, mediatypes
from modelimage.access import Access, open_image_repository
from modelimage.document_files import read_document
from modelimage.errors import GateFailed, InvalidInput, Unreachable
from modelimage.reference import LayoutReference, RegistryReference, parse_image
from modelimage.referrers import ArtifactFile, attach, make_artifact
from weightyard.advanced import SuggestingGroup
from weightyard.console import Console, pass_console
from weightyard.options import PathName, access_options
from weightyard.text import one_line
from workspace.probes.probe_set import ARTIFACT_TYPE, MOST_BYTES, Probe, ProbeSet, parse_probes
from workspace.probes.server_answers import MOST_BYTES as MOST_ANSWERED
from workspace.probes.server_answers import Reply, Unanswered, parse_reply, path_of, request_of
from workspace.probes.verdicts import (
    ProbeOutcome,
    ProbeVerdict,
    needs_serving,
    verdict,
    verdict_alone,
)

_SECONDS: Final = 60.0
_HINT: Final = "The table says of each probe why; with --json the answers are whole."
_ALONE: Final = f"{_HINT} `--serving URL` shows what the version that serves fails as well."
_SHOWN: Final = 60  # characters of an answer in the table
_MEDIA_TYPE: Final = "application/yaml"
_WORDS: Final = {
    ProbeOutcome.PASSED: "passed", ProbeOutcome.FAILED: "failed", ProbeOutcome.BOTH_FAILED: "failed by both",
    ProbeOutcome.UNANSWERED: "no answer",
}  # fmt: skip


@click.group(cls=SuggestingGroup)
def probes() -> None:
    """Prompts with expected answers, by which a new version is judged."""


@probes.command(
    epilog="""\b
Examples:
  weightyard probes run probes.yaml --url http://127.0.0.1:8000
  weightyard probes run probes.yaml --url http://127.0.0.1:8001 --serving http://127.0.0.1:8000
"""
)
@click.argument("file", type=PathName(exists=True, dir_okay=False))
@click.option("--url", required=True, metavar="URL", help="The server that is asked.")
@click.option(
    "--serving",
    metavar="URL",
    help="A server of the version that serves, as in a rollout: what both answer wrongly is no fault of the new one.",
)
@click.option(
    "--model", metavar="NAME", help="The served model's name.  [default: the server's own]"
)
@pass_console
def run(console: Console, *, file: Path, url: str, serving: str | None, model: str | None) -> None:
    """Ask a server the probes of a file.

    It shows which of them the server passes. The exit code is 18 unless all pass. Probes by `agreement` need --serving:
    without it they have no answer.
    """
    asked = _read(file)
    for each in (url, serving):
        if each is not None and not _is_url(each):
            raise InvalidInput(f"not a URL: {each}", hint="Write http://HOST:PORT.")
    with urllib3.PoolManager(retries=False, timeout=_SECONDS) as http:
        found = [_verdict(http, each, url, serving, model) for each in asked.probes]
    answers = [_answer(outcome, reply) for outcome, reply in found]
    results = [
        (each.name, _WORDS[each.outcome], each.cause, answer)
        for (each, _), answer in zip(found, answers, strict=True)
    ]
    columns = ("probe", "result", "why", "answer")
    rows = [(*result, one_line(answer)[:_SHOWN] or None) for *result, answer in results]
    document = [dict(zip(columns, each, strict=True)) for each in results]
    console.table(columns, rows, empty="no probes", document=document)
    failed = sum(outcome.outcome is not ProbeOutcome.PASSED for outcome, _ in found)
    if failed:
        hint = _ALONE if serving is None else _HINT
        raise GateFailed(f"{failed} of {len(found)} probes didn't pass", hint=hint)


def _is_url(text: str) -> bool:
    try:
        parts = urllib3.util.parse_url(text)
    except urllib3.exceptions.LocationValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.host)


@probes.command(
    "attach",
    epilog="""\b
Example:
  weightyard probes attach registry.example/team/model:v2 probes.yaml
""",
)
@click.argument("image")
@click.argument("file", type=PathName(exists=True, dir_okay=False))
@access_options
@pass_console
def attach_probes(console: Console, *, image: str, file: Path, access: Access) -> None:
    """Attach a probes file to a model image.

    It is for `probes: {attached: true}` in a Workspace, and is checked first. The newest that is attached is asked; the
    image and its digest don't change.
    """
    reference = parse_image(image)
    if not isinstance(reference, RegistryReference | LayoutReference):
        raise InvalidInput(
            f"can't attach to {reference}", hint="Use oci:DIR:TAG or a registry reference."
        )
    count = len(_read(file).probes)
    with durable.reading(file):
        data = file.read_bytes()
    place = open_image_repository(reference, access)
    subject = place.resolve(reference.name)
    created = datetime.fromtimestamp(int(time.time()), UTC).isoformat()
    artifact = make_artifact(
        subject,
        ARTIFACT_TYPE,
        [ArtifactFile("probes.yaml", _MEDIA_TYPE, data)],
        {mediatypes.ANNOTATION_CREATED: created},
    )
    attach(place, artifact)
    digest = str(artifact.manifest.descriptor.digest)
    document = {"image": image, "subject": str(subject.digest), "digest": digest, "probes": count}
    console.result(document, f"Attached {count} probes as {digest}\nto {subject.digest}")


def _read(file: Path) -> ProbeSet:
    with durable.reading(file):
        text = read_document(file)
    if len(text.encode()) > MOST_BYTES:
        raise InvalidInput(f"{file} has more than {MOST_BYTES >> 10} KiB")
    return parse_probes(text, what=str(file))


def _verdict(
    http: urllib3.PoolManager, probe: Probe, url: str, serving: str | None, model: str | None
) -> tuple[ProbeVerdict, Reply]:
    """What a probe says, and what the server answered."""
    reply = _ask(http, probe, url, model)
    if serving is None:
        return verdict_alone(probe, reply), reply
    theirs = _ask(http, probe, serving, model) if needs_serving(probe, reply) else None
    return verdict(probe, reply, theirs), reply


def _answer(outcome: ProbeVerdict, reply: Reply) -> str:
    """The answer to a probe that didn't pass: who runs the command wrote it, unlike those who read a status."""
    passed = outcome.outcome is ProbeOutcome.PASSED
    return "" if passed or isinstance(reply, Unanswered) else reply.text


def _ask(http: urllib3.PoolManager, probe: Probe, url: str, model: str | None) -> Reply:
    try:
        answer = http.request(
            "POST",
            url.rstrip("/").removesuffix("/v1") + path_of(probe),
            body=json.dumps(request_of(probe, model)).encode(),
            headers={"Content-Type": "application/json", "Accept-Encoding": "identity"},
            redirect=False,
            preload_content=False,
        )
        try:
            data = answer.read(MOST_ANSWERED + 1)
        finally:
            answer.close()
        if len(data) > MOST_ANSWERED:
            return Unanswered(f"answers with more than {MOST_ANSWERED >> 10} KiB")
        return parse_reply(probe, answer.status, data)
    except urllib3.exceptions.NewConnectionError as error:
        # Nobody listens: that says nothing of the probes.
        raise Unreachable(
            f"can't connect to {url}",
            hint="Is the server up? `weightyard ps` has the ports of local ones.",
        ) from error
    except urllib3.exceptions.HTTPError:
        return Unanswered("doesn't answer")
