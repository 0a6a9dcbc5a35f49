"""Every reason of a NodeCache's conditions, with its meaning. Nothing else is ever written.

Reasons are an interface: alerts and scripts compare them.
"""

from __future__ import annotations

from enum import StrEnum


class NodeReason(StrEnum):
    """A member is the word that is written; `meaning` is one line for the documentation."""

    meaning: str

    def __new__(cls, word: str, meaning: str) -> NodeReason:
        made = str.__new__(cls, word)
        made._value_ = word
        made.meaning = meaning
        return made

    RUNNING = ("Running", "The agent runs and its store is sound.")
    SYNCED = ("Synced", "The agent knows its desired models and follows their changes.")
    WITH_PROBLEMS = (
        "WithProblems",
        "So it does, but some documents can't be used; the message says which, and why.",
    )
    NOT_SYNCED = (
        "NotSynced",
        "The agent doesn't know its desired models yet; the message says what it waits for.",
    )
    DISCONNECTED = (
        "Disconnected",
        "The agent follows the last desired models that it knows, until it can ask again.",
    )
    HELD = ("Held", "The node holds every pinned model that selects it, verified.")
    MISSING = ("Missing", "The node doesn't hold a pinned model yet.")
    FITS = ("Fits", "All desired models fit.")
    NO_SPACE = ("NoSpace", "A desired model doesn't fit; status.desired says how much it needs.")
    NO_AGENT = (
        "NoAgent",
        "No agent runs on this machine. Commands report it; no NodeCache has it.",
    )
    NO_HEARTBEAT = (
        "NoHeartbeat",
        "The agent is silent: dead or cut off. Written by the controller.",
    )
