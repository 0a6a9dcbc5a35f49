"""`python -m weightyard.probe URL`: exits with 0 when URL answers 200. What a container's health check runs.

Only the standard library, and little of it: it runs every few seconds in images that have no curl.
"""

from __future__ import annotations

import http.client
import sys
from urllib.parse import urlsplit

SECONDS = 2.0


def answers(url: str) -> bool:
    """Whether a GET of `url` is answered with 200 in time."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=SECONDS)
    try:
        connection.request("GET", parts.path or "/")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(0 if answers(sys.argv[1]) else 1)
