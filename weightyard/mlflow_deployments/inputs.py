"""Turns MLflow's inputs into requests of the OpenAI API that servers speak, and answers into predictions. Pure.

A row is one request: a chat (`messages`), a completion (`prompt`), or something to embed (`input`). Its other fields
are the request's own (`max_tokens`, `temperature`, …). Knows no pandas: a data frame has `to_dict` and `columns`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from modelimage.errors import InvalidInput, RemoteRefused

Row = Mapping[str, Any]
# The field that says what a row is -> where such requests go.
PATHS: Final[Mapping[str, str]] = {
    "messages": "/v1/chat/completions",
    "prompt": "/v1/completions",
    "input": "/v1/embeddings",
}
_FORMS: Final = "Give a text, a dict with prompt or messages, a list of these, or a data frame with such a column."


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """One request: a path, and its JSON body."""

    path: str
    body: Mapping[str, Any]


def inference_requests(inputs: Any, model: str) -> list[InferenceRequest]:
    """The requests that inputs ask for, in their order. Raises InvalidInput."""
    rows = _rows(inputs)
    if not rows:
        raise InvalidInput("there are no inputs", hint=_FORMS)
    return [_request(row, model) for row in rows]


def predictions(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The answers in the form of MLflow's scoring: the texts as `predictions`, and everything as `responses`."""
    return {"predictions": [_text(each) for each in answers], "responses": list(answers)}


def _rows(inputs: Any) -> list[Row]:
    if isinstance(inputs, str):
        return [{"prompt": inputs}]
    if isinstance(inputs, Mapping):
        return _of_mapping(inputs)
    if hasattr(inputs, "to_dict") and hasattr(inputs, "columns"):
        return [_of_record(each) for each in inputs.to_dict(orient="records")]
    listed = inputs.tolist() if hasattr(inputs, "tolist") else inputs
    if not isinstance(listed, list | tuple):
        raise InvalidInput(f"inputs of the type {type(inputs).__name__} aren't known", hint=_FORMS)
    if listed and all(_is_message(each) for each in listed):
        return [{"messages": list(listed)}]
    return [row for each in listed for row in _rows(each)]


def _of_mapping(inputs: Mapping[str, Any]) -> list[Row]:
    if PATHS.keys() & inputs.keys():
        return [_of_record(inputs)]
    # What MLflow's own scoring server takes.
    shared = inputs.get("params") or {}
    for name in ("dataframe_records", "inputs", "instances"):
        if name in inputs:
            return [{**shared, **row} for row in _rows(inputs[name])]
    split = inputs.get("dataframe_split")
    if isinstance(split, Mapping):
        names = split.get("columns") or ()
        rows = [dict(zip(names, each, strict=False)) for each in split.get("data") or ()]
        return [{**shared, **_of_record(row)} for row in rows]
    return [_of_record(inputs)]


def _of_record(record: Mapping[Any, Any]) -> Row:
    """One row of a table: without what is missing in it, and with a single text column as the prompt."""
    row = {str(name): _plain(value) for name, value in record.items() if not _is_missing(value)}
    if not PATHS.keys() & row.keys() and len(row) == 1:
        (value,) = row.values()
        if isinstance(value, str):
            return {"prompt": value}
    return row


def _request(row: Row, model: str) -> InferenceRequest:
    kinds = [name for name in PATHS if name in row]
    if len(kinds) != 1:
        told = f"has {' and '.join(kinds)}" if kinds else f"has none of {', '.join(PATHS)}"
        raise InvalidInput(f"a row of the inputs {told}", hint=_FORMS)
    # Answers are given whole: `predict_stream` streams.
    body = {"model": model, **{name: value for name, value in row.items() if name != "stream"}}
    return InferenceRequest(PATHS[kinds[0]], body)


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and {"role", "content"} <= value.keys()


def _is_missing(value: Any) -> bool:
    """None, and the NaN by which data frames write it: alone in that it differs from itself."""
    return value is None or (isinstance(value, float) and value != value)  # noqa: PLR0124


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy as Python's own, which JSON has."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return value.item() if hasattr(value, "item") else value


def _text(answer: Mapping[str, Any]) -> Any:
    """What an answer says: a text, or the numbers of an embedding. Raises RemoteRefused."""
    try:
        if "choices" in answer:
            choice = answer["choices"][0]
            return choice["message"]["content"] if "message" in choice else choice["text"]
        return answer["data"][0]["embedding"]
    except (KeyError, IndexError, TypeError) as error:
        raise RemoteRefused(
            f"the server answered something else than a completion: {str(answer)[:200]}"
        ) from error
