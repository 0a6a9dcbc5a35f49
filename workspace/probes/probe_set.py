"""The probes file: YAML or JSON from a ConfigMap, an artifact or a disk, parsed once to checked values.

Everything is bounded: a probe costs the servers tokens and the controller time, and its author may be anybody who may
write a ConfigMap.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, PrivateAttr, StringConstraints, ValidationError, model_validator

from cache_agent.api.document_errors import sentence
from cache_agent.api.kube_objects import Strict
from modelimage.errors import InvalidInput
from modelimage.yaml_text import parse_yaml
from workspace.field_types import refuse_repeats
from workspace.probes.json_schemas import JsonSchema
from workspace.probes.patterns import LONGEST, Pattern

MOST_BYTES: Final = 64 << 10
MOST_PROBES: Final = 100
# The type of an artifact whose one file is a probes file.
ARTIFACT_TYPE: Final = "application/vnd.weightyard.probes.v1"
HINT: Final = (
    "Write as in `probes: [{name: capital, prompt: The capital of France is, contains: Paris}]`."
)

_Prompt = Annotated[str, StringConstraints(min_length=1, max_length=16_384)]
_Expected = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
ProbeName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$")
]


class Message(Strict):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: _Prompt


class Agreement(Strict):
    """How near the answer has to be to that of the version that serves."""

    max_logprob_gap: Annotated[float, Field(ge=0, le=100)] = Field(
        default=0.25,
        description="How much less probable the serving version's tokens may be to the new one: the mean difference of "
        "their logarithms, in nats, up to the first token at which the answers part.",
    )
    min_share: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0,
        description="The share of the serving version's tokens that the new one repeats from the beginning.",
    )


class Expectation(StrEnum):
    """What an answer may be checked by."""

    EXACT = "exact"
    CONTAINS = "contains"
    REGEX = "regex"
    JSON_SCHEMA = "jsonSchema"
    AGREEMENT = "agreement"


class Probe(Strict):
    """One prompt and what its answer has to be: exactly one of `exact`, `contains`, `regex`, `jsonSchema`, `agreement`.

    Space around the answer doesn't count.
    """

    name: ProbeName
    prompt: _Prompt | None = None
    messages: (
        Annotated[tuple[Message, ...], Field(min_length=1, max_length=32, strict=False)] | None
    ) = None
    # `server_answers.MOST_BYTES` is sized for so many.
    max_tokens: Annotated[int, Field(ge=1, le=512)] = 64
    exact: _Expected | None = None
    contains: _Expected | None = None
    regex: Annotated[str, StringConstraints(min_length=1, max_length=LONGEST)] | None = None
    json_schema: bool | dict[str, Any] | None = None
    agreement: Agreement | None = None
    _pattern: Pattern | None = PrivateAttr(default=None)
    _schema: JsonSchema | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give exactly one of prompt and messages")
        given = [self.exact, self.contains, self.regex, self.json_schema, self.agreement]
        if sum(each is not None for each in given) != 1:
            raise ValueError(f"give exactly one of {', '.join(Expectation)}")
        try:
            self._pattern = Pattern(self.regex) if self.regex is not None else None
            self._schema = JsonSchema(self.json_schema) if self.json_schema is not None else None
        except InvalidInput as error:
            raise ValueError(error.message) from error
        return self

    @property
    def expectation(self) -> Expectation:
        """What its answer is checked by."""
        found = {
            Expectation.EXACT: self.exact, Expectation.CONTAINS: self.contains, Expectation.REGEX: self.regex,
            Expectation.JSON_SCHEMA: self.json_schema, Expectation.AGREEMENT: self.agreement,
        }  # fmt: skip
        return next(kind for kind, value in found.items() if value is not None)

    @property
    def pattern(self) -> Pattern | None:
        """`regex`, compiled."""
        return self._pattern

    @property
    def schema_check(self) -> JsonSchema | None:
        """`jsonSchema`, checked."""
        return self._schema


class ProbeSet(Strict):
    """A probes file."""

    probes: tuple[Probe, ...] = Field(strict=False, min_length=1, max_length=MOST_PROBES)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        refuse_repeats("probes", [each.name for each in self.probes])
        return self


def parse_probes(text: str, *, what: str) -> ProbeSet:
    """A probes file's content. `what` names it in errors, which show nothing else of it. Raises InvalidInput."""
    # Bytes of UTF-8, at most four for a character: encoding a megabyte first would be the cost that is to be saved.
    if len(text) > MOST_BYTES or len(text.encode(errors="replace")) > MOST_BYTES:
        raise InvalidInput(f"{what} has more than {MOST_BYTES >> 10} KiB", hint=HINT)
    document = _document(text, what)
    found = document.get("probes")
    # Before each is validated.
    if isinstance(found, list) and len(found) > MOST_PROBES:
        raise InvalidInput(
            f"{what} has {len(found)} probes, and at most {MOST_PROBES} are asked", hint=HINT
        )
    try:
        return ProbeSet.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidInput(f"{what}: {sentence(first, ProbeSet)}", hint=HINT) from error
    except RecursionError as error:
        raise InvalidInput(f"{what} is nested too deeply", hint=HINT) from error


def _document(text: str, what: str) -> dict[str, Any]:
    documents: list[Any]
    if text.lstrip().startswith("{"):
        # YAML can say the same, at a hundred times the cost.
        try:
            documents = [json.loads(text)]
        except (ValueError, RecursionError):
            documents = parse_yaml(text, what=what)
    else:
        documents = parse_yaml(text, what=what)
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise InvalidInput(f"{what} isn't one mapping with a list `probes`", hint=HINT)
    return documents[0]
