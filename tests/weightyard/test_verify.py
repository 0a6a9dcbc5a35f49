"""What `verify --key` calls intact is what was signed, whatever becomes of its tag meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from modelimage import cosign
from modelimage.descriptor import Descriptor
from modelimage.keys import PublicKey
from modelimage.repository import ImageReader
from tests.builder.building import weightyard_here
from tests.modelimage.conformance import put_image
from tests.modelimage.foreign.images import Maker, files_tar
from tests.modelimage.test_cosign import public_pem


def test_a_tag_that_moves_after_the_signature_was_checked_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "key.pub").write_bytes(public_pem(key))
    maker = Maker(tmp_path / "layout")
    layout = maker.layout
    signed = maker.image(files_tar({"model.gguf": b"signed"}), tag="v1")
    cosign.sign(layout, layout, signed, key, name="team/model")
    checked = cosign.verify

    def checked_then_moved(
        reader: ImageReader, subject: Descriptor, keys: Sequence[PublicKey]
    ) -> None:
        checked(reader, subject, keys)
        # Its layer is no archive.
        put_image(layout, "v1", b"unsigned")

    monkeypatch.setattr(cosign, "verify", checked_then_moved)
    image = f"oci:{tmp_path / 'layout'}:v1"
    done = weightyard_here(capsys, "--json", "verify", image, "--key", tmp_path / "key.pub")
    assert (done.code, done.json["digest"]) == (0, str(signed.digest)), done.err
