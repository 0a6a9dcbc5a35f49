"""The licence of a checkpoint, from the front matter of its README, else from its LICENSE file. Pure.

The Hub's identifiers (huggingface.co/docs/hub/repositories-licenses) are mapped to SPDX's where they exist, as the OCI
annotation `org.opencontainers.image.licenses` requires; the others become a `LicenseRef-`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from modelimage.model_card import parse_card, texts

# The licence is at the start of these files, so longer ones are cut.
MAX_BYTES: Final = 1 << 20

_SPDX: Final = (
    "Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "BSD-3-Clause-Clear", "BSL-1.0", "AFL-3.0", "Artistic-2.0",
    "CC0-1.0", "CC-BY-2.0", "CC-BY-2.5", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC-BY-NC-2.0",
    "CC-BY-NC-3.0", "CC-BY-NC-4.0", "CC-BY-ND-4.0", "CC-BY-NC-ND-3.0", "CC-BY-NC-ND-4.0", "CC-BY-NC-SA-2.0",
    "CC-BY-NC-SA-3.0", "CC-BY-NC-SA-4.0", "ECL-2.0", "EPL-1.0", "EPL-2.0", "EUPL-1.1", "EUPL-1.2", "ISC",
    "LPPL-1.3c", "MPL-2.0", "MS-PL", "NCSA", "ODbL-1.0", "OFL-1.1", "OSL-3.0", "PDDL-1.0", "PostgreSQL",
    "Unlicense", "WTFPL", "Zlib",
)  # fmt: skip
_IDENTIFIERS: Final[Mapping[str, str]] = {
    **{name.lower(): name for name in _SPDX},
    "agpl-3.0": "AGPL-3.0-only",
    "gpl-2.0": "GPL-2.0-only",
    "gpl-3.0": "GPL-3.0-only",
    "lgpl-2.1": "LGPL-2.1-only",
    "lgpl-3.0": "LGPL-3.0-only",
}
# Only unmistakable titles: a wrong licence would be worse than none.
_TITLES: Final = (
    (re.compile(r"Apache License\s+Version 2\.0"), "Apache-2.0"),
    (re.compile(r"\bMIT License\b"), "MIT"),
    (re.compile(r"Mozilla Public License Version 2\.0"), "MPL-2.0"),
    (re.compile(r"Creative Commons Attribution 4\.0 International"), "CC-BY-4.0"),
)
# Placeholders on the Hub for an unstated licence.
_UNKNOWN: Final = ("", "unknown", "other")
_FILES: Final = re.compile(r"(?:licen[cs]e|copying)(?:\.(?:md|txt))?", re.IGNORECASE)


def licence(documents: Mapping[str, str]) -> str:
    """The licence as an SPDX expression, from the texts of files in the root by name; empty if none is stated."""
    readme = next((text for name, text in documents.items() if name.lower() == "readme.md"), "")
    stated = _from_readme(readme)
    if stated:
        return stated
    for name, text in sorted(documents.items()):
        if _FILES.fullmatch(name):
            head = text[:2000]
            return next((spdx for title, spdx in _TITLES if title.search(head)), "")
    return ""


def states_licence(name: str) -> bool:
    """Whether a file in the root may state the licence."""
    return name.lower() == "readme.md" or bool(_FILES.fullmatch(name))


def _from_readme(text: str) -> str:
    # An invalid model card states no licence, but is no reason not to pack the model.
    card = parse_card(text)
    known = [name.lower() for name in texts(card, "license")]
    known = [name for name in known if name not in _UNKNOWN]
    # With `license: other`, the Hub's field license_name has the real one.
    if not known and isinstance(card.get("license_name"), str):
        known = [card["license_name"].strip().lower()]
    return " AND ".join(dict.fromkeys(_identifier(name) for name in known if name))


def _identifier(name: str) -> str:
    return _IDENTIFIERS.get(name) or "LicenseRef-" + re.sub(r"[^A-Za-z0-9.-]+", "-", name)
