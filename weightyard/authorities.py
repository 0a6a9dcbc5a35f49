"""Makes additional certificate authorities known to the clients of others: the Hub's, S3's, Google's.

They know no option of ours, but environment variables, each of which names a file that takes the place of the public
authorities. So the file that is given to them holds those too.
"""

from __future__ import annotations

import atexit
import ssl
import tempfile
from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

from modelimage.errors import InvalidInput

# httpx, which huggingface-hub uses, and OpenSSL itself; requests; boto3.
VARIABLES: Final = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE")


def trust(ca_file: Path, environ: MutableMapping[str, str]) -> None:
    """Has every client that this process makes later trust a PEM file, beside the public authorities.

    Variables that the user has set stay. The file that the others name goes when the process ends. Raises InvalidInput.
    """
    missing = [name for name in VARIABLES if not environ.get(name)]
    if not missing:
        return
    try:
        own = ca_file.read_bytes()
    except OSError as error:
        raise InvalidInput(
            f"{ca_file} can't be read: {error.strerror}", hint="Correct --ca-file."
        ) from error
    # Stays when it is closed: clients open it by its name, and later.
    with tempfile.NamedTemporaryFile(
        prefix="weightyard-ca-", suffix=".pem", delete=False
    ) as bundle:
        bundle.write(b"\n".join([*_public(), own]))
    atexit.register(Path(bundle.name).unlink, missing_ok=True)
    environ.update(dict.fromkeys(missing, bundle.name))


def _public() -> list[bytes]:
    """The authorities of the system, and those that requests and httpx would trust otherwise."""
    system = ssl.get_default_verify_paths().cafile
    files = {Path(system)} if system else set()
    try:
        import certifi  # noqa: PLC0415 - those clients bring it along
    except ModuleNotFoundError:
        return [each.read_bytes() for each in files]
    return [each.read_bytes() for each in sorted({*files, Path(certifi.where())})]
