"""Which implementation a reference gets, and that TLS is checked unless somebody asked for less."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from modelimage.access import Access, open_image_repository, open_reader, open_repository
from modelimage.errors import InvalidInput, RemoteRefused
from modelimage.layout import Layout
from modelimage.reference import (
    EngineReference,
    LayoutReference,
    RegistryReference,
    parse_registry,
)
from tests.modelimage.conformance import BLOB, blob_content, described, put_image, read_all
from tests.servers.faulty_registry import Fault, FaultyRegistry, Seen
from tests.servers.registry import DockerRegistry


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("ghcr.io/a/b", "https://ghcr.io"),
        ("ubuntu", "https://registry-1.docker.io"),
        ("127.0.0.1:5000/m", "http://127.0.0.1:5000"),
        ("localhost:5000/m", "http://localhost:5000"),
        ("[::1]:5000/m", "http://[::1]:5000"),
        ("registry.localhost/m", "http://registry.localhost"),
        ("inside.example:5000/m", "http://inside.example:5000"),
        ("inside.example/m", "https://inside.example"),
        ("127.0.0.1.evil.example/m", "https://127.0.0.1.evil.example"),
        ("localhost.evil.example/m", "https://localhost.evil.example"),
    ],
)
def test_plain_http_is_for_loopback_and_named_hosts(text: str, origin: str) -> None:
    access = Access(plain_http=frozenset({"inside.example:5000"}))
    assert str(access.origin(parse_registry(text))) == origin


def test_a_ca_file_means_tls_on_loopback_too() -> None:
    local = parse_registry("127.0.0.1:5000/m")
    assert Access(ca_file=Path("ca")).origin(local).encrypted
    assert Access(unverified_tls=frozenset({"127.0.0.1:5000"})).origin(local).encrypted
    both = Access(ca_file=Path("ca"), plain_http=frozenset({"127.0.0.1:5000"}))
    assert not both.origin(local).encrypted


def test_a_reference_chooses_its_implementation(tmp_path: Path) -> None:
    layout = LayoutReference(tmp_path)
    assert isinstance(open_reader(layout, Access()), Layout)
    assert isinstance(open_image_repository(layout, Access()), Layout)
    with pytest.raises(InvalidInput, match="docker engine"):
        open_reader(EngineReference("m"), Access())


def test_repositories_of_one_access_share_its_connections(registry: DockerRegistry) -> None:
    access = Access()
    first, second = (
        open_repository(RegistryReference(registry.host, name), access) for name in ("a", "b")
    )
    assert access.connections is access.connections
    put_image(first, "v1")
    put_image(second, "v1")
    assert access == Access(), "connections are no part of what an access is"


class ToldOfTls(Fault):
    """No fault: tells the registry how the client came, so that it answers with https URLs."""

    def request_headers(self, request: Seen, headers: dict[str, str]) -> dict[str, str]:
        return {**headers, "X-Forwarded-Proto": "https"}


class TlsRegistry(FaultyRegistry):
    """A proxy without faults that speaks TLS with a certificate for 127.0.0.1."""

    def __init__(self, upstream: str, directory: Path) -> None:
        super().__init__(upstream, ToldOfTls())
        self.certificate = directory / "certificate.pem"
        self._key = directory / "key.pem"
        write_certificate(self.certificate, self._key)

    def __enter__(self) -> Self:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self._key)
        super().__enter__()
        # The handshake waits for the handler's first read, in the handler's thread.
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        return self


def write_certificate(certificate: Path, key_file: Path) -> None:
    """A self-signed certificate, which is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


@pytest.fixture
def tls(registry: DockerRegistry, tmp_path: Path) -> Iterator[TlsRegistry]:
    with TlsRegistry(registry.host, tmp_path) as server:
        yield server


@pytest.mark.servers
def test_a_certificate_is_checked_against_the_ca_file(tls: TlsRegistry, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    write_certificate(other, tmp_path / "other.key")
    reference = RegistryReference(tls.host, "tls/model")
    repository = open_repository(reference, Access(ca_file=tls.certificate))
    repository.put_blob(blob_content(BLOB))
    assert read_all(repository, described(BLOB)) == BLOB
    with pytest.raises(RemoteRefused, match="no secure connection") as caught:
        open_reader(reference, Access(ca_file=other)).tags()
    assert "--ca-file" in str(caught.value.hint)


@pytest.mark.servers
def test_an_unchecked_certificate_is_taken_only_where_asked_for(tls: TlsRegistry) -> None:
    reference = RegistryReference(tls.host, "tls/model")
    access = Access(unverified_tls=frozenset({tls.host}))
    put_image(open_repository(reference, access), "v1")
    assert open_reader(reference, access).tags() == ["v1"]


@pytest.mark.servers
def test_a_registry_that_wants_uploads_in_clear_is_refused(tls: TlsRegistry) -> None:
    tls.faults = ()
    repository = open_repository(
        RegistryReference(tls.host, "tls/clear"), Access(ca_file=tls.certificate)
    )
    with pytest.raises(RemoteRefused, match="isn't encrypted"):
        repository.put_blob(blob_content(b"for tls/clear"))


@pytest.mark.parametrize("text", ["", "no certificate"])
def test_a_ca_file_without_certificates_is_invalid_input(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ca.pem"
    path.write_text(text)
    for ca_file in (path, tmp_path / "absent"):
        with pytest.raises(InvalidInput, match="no usable certificate"):
            open_reader(RegistryReference("r.example", "m"), Access(ca_file=ca_file))
