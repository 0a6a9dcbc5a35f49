"""`python -m weightyard.probe URL`: exits with 0 when URL returns 200.

Used by container health checks. Few imports, from the standard library only: it runs every few seconds, in images
without curl.
"""

from __future__ import annotations

import http.client
import sys
from urllib.parse import urlsplit

SECONDS = 2.0


def answers(url: str) -> bool:
    """Whether `url` responds with success in time."""
    parts = urlsplit(url)
    try:
        return _status(parts.netloc, parts.path or "/") == 200
    except (OSError, http.client.HTTPException):
        return False


def _status(host: str, path: str) -> int:
    connection = http.client.HTTPConnection(host, timeout=SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(0 if answers(sys.argv[1]) else 1)
