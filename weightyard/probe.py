"""`python -m weightyard.probe URL`: exits with 0 when URL answers 200, or something listens at `unix:PATH`.

What a container's health check runs. Only the standard library, and little of it: it runs every few seconds, in images
that have no curl.
"""

from __future__ import annotations

import http.client
import socket
import sys
from urllib.parse import urlsplit

SECONDS = 2.0


def answers(url: str) -> bool:
    """Whether `url` is answered in time."""
    parts = urlsplit(url)
    try:
        if parts.scheme == "unix":
            return _listens(parts.path)
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


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(SECONDS)
        client.connect(path)
    return True


if __name__ == "__main__":
    sys.exit(0 if answers(sys.argv[1]) else 1)
