"""A node that asks for signatures takes what is signed by an accepted key, and nothing else; a registry away or not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cache_agent.access.signatures import Untrusted
from cache_agent.config import AgentConfig, SignatureSection
from cache_agent.config.settings_file import parse_config
from cache_agent.daemon.node_setup import NodeOptions, NodeParts, open_node, reconfigure
from cache_agent.fetch.values import PullRequest, PullResult
from cache_agent.node.node import Node
from modelimage import cosign
from modelimage.access import Access
from modelimage.descriptor import Descriptor
from modelimage.errors import AccessDenied, InvalidInput, NotFound, Unreachable
from modelimage.layout import Layout
from modelimage.reference import parse_image
from tests.builder.building import build_here
from tests.builder.checkpoints import sharded, single


class Signer:
    """A key pair; `path` has its public half."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._key = ec.generate_private_key(ec.SECP256R1())
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        path.write_bytes(self._key.public_key().public_bytes(serialization.Encoding.PEM, form))

    def sign(self, layout: Layout, tag: str = "v1") -> None:
        cosign.sign(layout, layout, layout.resolve(tag), self._key, name="models")


@pytest.fixture
def team(tmp_path: Path) -> Signer:
    return Signer(tmp_path / "team.pub")


@pytest.fixture
def stranger(tmp_path: Path) -> Signer:
    return Signer(tmp_path / "stranger.pub")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    build_here(single(tmp_path / "source"), f"oci:{tmp_path}/models:v1", tmp_path)
    return Layout(tmp_path / "models")


def asks(*signers: Signer, images: str = "oci:*/models") -> tuple[SignatureSection, ...]:
    return (SignatureSection(images=images, keys=tuple(each.path for each in signers)),)


@pytest.fixture
def node(tmp_path: Path, team: Signer) -> Iterator[Node]:
    options = NodeOptions(tmp_path / "store", signatures=asks(team))
    with open_node(options, NodeParts.real(Access())) as opened:
        yield opened


class Away:
    """A registry that doesn't answer."""

    def resolve(self, name: str) -> Descriptor:
        raise Unreachable("nobody answers")


def pull(node: Node, layout: Layout, *, away: bool = False) -> PullResult:
    reader = Away() if away else None
    request = PullRequest(parse_image(f"oci:{layout.path}:v1"), reader=reader)  # type: ignore[arg-type]
    result = node.pull(request).result()
    assert result is not None
    return result


def test_only_what_an_accepted_key_signed_is_taken(
    node: Node, layout: Layout, team: Signer, stranger: Signer
) -> None:
    with pytest.raises(Untrusted, match="only when it is signed") as caught:
        pull(node, layout)
    assert "weightyard sign" in str(caught.value.hint)
    stranger.sign(layout)
    with pytest.raises(Untrusted, match="accepted key"):
        pull(node, layout)
    assert node.store.models.all() == []
    team.sign(layout)
    assert pull(node, layout).model.files > 0


def test_a_tag_that_moves_to_an_unsigned_image_is_refused(
    node: Node, layout: Layout, team: Signer, tmp_path: Path
) -> None:
    team.sign(layout)
    pull(node, layout)
    build_here(sharded(tmp_path / "other"), f"oci:{layout.path}:v1", tmp_path)
    with pytest.raises(Untrusted):
        pull(node, layout)


def test_a_signed_model_is_served_while_its_registry_is_away_and_no_other(
    node: Node, layout: Layout, team: Signer, stranger: Signer
) -> None:
    node.trust.reconfigure(())
    pull(node, layout)
    node.trust.reconfigure(asks(team))
    with pytest.raises(Unreachable):
        pull(node, layout, away=True)
    team.sign(layout)
    pull(node, layout)
    assert pull(node, layout, away=True).stale
    node.trust.reconfigure(asks(stranger))
    with pytest.raises(Unreachable):
        pull(node, layout, away=True)


def test_what_was_found_signed_is_known_after_a_restart(
    node: Node, layout: Layout, team: Signer, tmp_path: Path
) -> None:
    team.sign(layout)
    pull(node, layout)
    node.close()
    options = NodeOptions(tmp_path / "store", signatures=asks(team))
    with open_node(options, NodeParts.real(Access())) as again:
        assert pull(again, layout, away=True).stale
        assert again.check().findings == []


def test_the_first_rule_that_fits_decides_and_others_need_no_signature(
    node: Node, layout: Layout, team: Signer, stranger: Signer
) -> None:
    node.trust.reconfigure(asks(stranger, images="registry.example/*"))
    pull(node, layout)
    team.sign(layout)
    node.trust.reconfigure((*asks(team), *asks(stranger, images="*")))
    pull(node, layout)
    node.trust.reconfigure((*asks(stranger, images="*"), *asks(team)))
    with pytest.raises(Untrusted):
        pull(node, layout)


def test_keys_that_can_not_be_read_are_refused_and_the_old_rules_stay(
    node: Node, layout: Layout, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.pub"
    for path, error in ((broken, NotFound), (tmp_path / "team.pub", InvalidInput)):
        if path is not broken:
            path.write_text("no key")
        with pytest.raises(error):
            reconfigure(node, AgentConfig(signatures=(SignatureSection(images="*", keys=(path,)),)))
    with pytest.raises(AccessDenied):
        pull(node, layout)


def test_the_settings_file_says_it() -> None:
    text = "signatures: [{images: 'registry.example/*', keys: [/etc/team.pub]}]"
    config = parse_config(text, {}, {})
    assert config.signatures[0].keys == (Path("/etc/team.pub"),)
    with pytest.raises(InvalidInput, match=r"signatures\[0\]\.keys"):
        parse_config("signatures: [{images: '*', keys: []}]", {}, {})
