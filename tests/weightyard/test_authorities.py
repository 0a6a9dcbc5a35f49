"""The clients of the Hub, of S3 and of others trust the authorities that the user names."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from modelimage.child import python_module
from modelimage.errors import InvalidInput
from tests.cache_agent.peers.certificates import Authority
from tests.servers.process import child_environment
from weightyard.authorities import VARIABLES, trust
from weightyard.exits import exit_code

CLIENTS = {
    "hub": "from huggingface_hub import HfApi; HfApi(endpoint=url).model_info('org/name')",
    "s3": "import boto3; boto3.client('s3', endpoint_url=url, aws_access_key_id='a', "
          "aws_secret_access_key='b', region_name='x').head_bucket(Bucket='b')",
    "requests": "import requests; requests.get(url).raise_for_status()",
    "python": "import urllib.request; urllib.request.urlopen(url)",
}  # fmt: skip


class Missing(BaseHTTPRequestHandler):
    """Knows nothing: who gets its 404 has trusted it."""

    def do_GET(self) -> None:
        self.send_error(404)

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(name="server", scope="module")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A server's URL, and the authority that alone certifies it."""
    authority = Authority(tmp_path_factory.mktemp("tls") / "authority")
    files = authority.issue("localhost")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.certificate, files.key)
    server = ThreadingHTTPServer(("localhost", 0), Missing)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"https://localhost:{server.server_address[1]}", authority.certificate
    server.shutdown()
    server.server_close()
    thread.join()


def asked(client: str, url: str, ca_file: Path | None) -> str:
    """How a client's request in a process of its own ends."""
    trusting = f"trust(Path({str(ca_file)!r}), os.environ)\n" if ca_file else ""
    code = (
        "import os\nfrom pathlib import Path\nfrom weightyard.authorities import trust\n"
        f"{trusting}url = {url!r}\n{CLIENTS[client]}"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    return ended.stderr


@pytest.mark.parametrize("client", CLIENTS)
def test_a_server_that_a_private_authority_certifies_is_trusted(
    client: str, server: tuple[str, Path]
) -> None:
    url, authority = server
    assert "404" in asked(client, url, authority)


def test_without_the_authority_it_is_not(server: tuple[str, Path]) -> None:
    assert "certificate verify failed" in asked("requests", server[0], None).lower()


def test_public_authorities_are_trusted_further(server: tuple[str, Path]) -> None:
    environ: dict[str, str] = {}
    trust(server[1], environ)
    assert set(environ) == set(VARIABLES)
    (bundle,) = set(environ.values())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(bundle)
    certifi = pytest.importorskip("certifi")
    public = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    public.load_verify_locations(certifi.where())
    names = {str(each["subject"]) for each in context.get_ca_certs()}
    assert {str(each["subject"]) for each in public.get_ca_certs()} < names


def test_what_the_user_has_set_stays(server: tuple[str, Path]) -> None:
    environ = {"AWS_CA_BUNDLE": "/mine.pem"}
    trust(server[1], environ)
    assert environ["AWS_CA_BUNDLE"] == "/mine.pem"
    assert set(environ) == set(VARIABLES)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="can't be read"):
        trust(tmp_path, {})


def test_a_controller_with_a_file_of_no_certificates_says_so(tmp_path: Path) -> None:
    authorities, cluster = tmp_path / "ca.pem", tmp_path / "kubeconfig"
    authorities.write_text("no certificate")
    named = [{"name": "a", "cluster": {"server": "https://127.0.0.1:1"}}]
    context = [{"name": "a", "context": {"cluster": "a", "user": "a"}}]
    users = [{"name": "a", "user": {"token": "t"}}]
    cluster.write_text(
        json.dumps({"clusters": named, "contexts": context, "users": users, "current-context": "a"})
    )
    done = subprocess.run(
        [
            *python_module("weightyard"), "controller", "--prometheus", "http://127.0.0.1:1",
            "--ca-file", str(authorities),
        ],
        env={**child_environment(tmp_path), "KUBECONFIG": str(cluster)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == exit_code(InvalidInput("")), done.stderr
    assert "holds no usable certificate" in done.stderr
