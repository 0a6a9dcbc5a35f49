"""What others' text may not bring into errors and logs: credentials. Ordinary words stay as they are."""

from __future__ import annotations

import pytest

from modelimage.errors import RemoteRefused
from modelimage.log_text import MOST, shortened, without_credentials

SECRET = "c2VjcmV0OnNlY3JldA=="
CREDENTIALS = [
    f"Authorization: Basic {SECRET}", f"{{'authorization': 'Bearer {SECRET}'}}", f"bearer\t{SECRET}",
    f"https://user:{SECRET}@hub.test/a", f"https://{SECRET}@hub.test/a", f"X-Api-Key: {SECRET}",
    f"'X-Amz-Security-Token': '{SECRET}'", f"PRIVATE-TOKEN={SECRET}", f"Cookie: {SECRET}",
    f"GET /a?X-Amz-Signature={SECRET}&b=1", f"/a?x=1&sig={SECRET}", f"/a?X-Goog-Credential={SECRET}",
    f"/a?access_token={SECRET}", f"/a?api_key={SECRET}", f"/a?AWSAccessKeyId={SECRET}",
]  # fmt: skip


@pytest.mark.parametrize("text", CREDENTIALS)
def test_credentials_are_hidden(text: str) -> None:
    assert SECRET not in without_credentials(text)
    assert SECRET not in RemoteRefused(f"the registry says: {text}").message
    assert SECRET not in str(RemoteRefused(text))
    assert SECRET not in shortened("x " * 5 * MOST + text)


@pytest.mark.parametrize("token", ["hf_" + "a1B2" * 8, "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln"])
def test_tokens_are_hidden_wherever_they_are(token: str) -> None:
    assert token not in without_credentials(f"refused ({token})")


@pytest.mark.parametrize(
    "text",
    [
        "basic authentication is needed", "a bearer token of the cluster", "token server: 401 Unauthorized",
        "docker.io/library/model@sha256:0123", "oci:/srv/image:v1", "https://hub.test/a?revision=main&key2=x",
        "s3://bucket/key=value/model", "http://[fd00::1]:8080/x", "the tokens 12345678 of the model",
    ],
)  # fmt: skip
def test_words_stay(text: str) -> None:
    assert without_credentials(text) == text


@pytest.mark.parametrize("piece", ["?a", "basic ", "://", "x-", "eyJ", "&token", "cookie: "])
def test_no_text_takes_long(piece: str) -> None:
    """Each place is looked at a bounded number of times: there is no text that a pattern tries in ever more ways."""
    text = piece * (MOST // len(piece))
    assert len(without_credentials(text)) <= 2 * len(text)
