"""What strangers' text may do in errors and logs: little. It is bounded, prints as it is, and has no credentials.

Our own words never have any; a registry, a proxy or a library may repeat what it was sent.
"""

from __future__ import annotations

import re
from typing import Final

MOST: Final = 16_384  # characters of one value
_HIDDEN: Final = "***"
_NAMES: Final = 128  # characters of the longest name that says that a credential follows
# Each takes a time that grows with the text's length only: repetitions are bounded.
_CREDENTIALS: Final = (
    # Of the header Authorization. A digit or a `=` tells a token from a word, as in "basic authentication".
    (
        re.compile(r"(?i)\b(basic|bearer|token)(\s+)(?=[^\s,;\"']{0,4096}[0-9=])[a-z0-9._~+/=-]{8,8192}"),
        rf"\1\2{_HIDDEN}",
    ),
    # Other headers, as `name: value` or in a mapping.
    (
        re.compile(r"(?i)\b((?:x-[a-z-]{0,40}(?:token|key)|private-token|cookie)[\"']?\s{0,4}[:=]\s{0,4}[\"']?)[^\s\"',]{4,8192}"),
        rf"\1{_HIDDEN}",
    ),
    # Of addresses: signatures and keys of the query, and the user's name and password.
    (
        re.compile(
            r"(?i)([?&;](?:[a-z_-]{0,40}(?:signature|credential|token|secret|password|api_?key|accesskeyid)|sig|key)=)"
            r"[^\s&;\"'#]{1,8192}"
        ),
        rf"\1{_HIDDEN}",
    ),
    (re.compile(r"(\w://)[^\s/@\"']{1,1024}@"), rf"\1{_HIDDEN}@"),
    # Tokens of the Hub, and signed ones of registries and clusters.
    (re.compile(r"\bhf_[A-Za-z0-9]{16,128}"), f"hf_{_HIDDEN}"),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,8192}(?:\.[A-Za-z0-9_-]{1,8192}){0,2}"), _HIDDEN),
)  # fmt: skip


def without_credentials(text: str) -> str:
    """A text with `***` in the place of what looks like a credential."""
    for pattern, instead in _CREDENTIALS:
        text = pattern.sub(instead, text)
    return text


def shortened(text: str) -> str:
    """A text, or its beginning and its end, where an error's cause is; without credentials."""
    if len(text) <= MOST:
        return without_credentials(text)
    half = MOST // 2
    head = without_credentials(text[:half])
    # With what comes before: by a header's or a parameter's name a credential is known.
    tail = without_credentials(text[-half - _NAMES :])[-half:]
    return f"{head} […{len(text) - 2 * half} characters…] {tail}"


def printable(text: str) -> str:
    """A text on one line in which control characters, and what no encoding has, are written as Python writes them."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
