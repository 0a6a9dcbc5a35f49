"""`helm test`: pulls a small image through an agent's mirror, byte for byte, and checks every digest.

    smoke.py http://AGENT:PORT REGISTRY/REPOSITORY:TAG

Standard library only: it runs in the agent's image with nothing else.
"""

import hashlib
import json
import platform
import sys
import urllib.request

KINDS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


def fetch(mirror, registry, path, digest=None):
    """A document or a blob through the mirror; exits when its bytes have another digest."""
    request = urllib.request.Request(
        f"{mirror}/v2/{path}?ns={registry}", headers={"Accept": ", ".join(KINDS)}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        data = answer.read()
    found = "sha256:" + hashlib.sha256(data).hexdigest()
    if digest not in (None, found):
        sys.exit(f"{path}: {found} instead of {digest}")
    return data


def main(mirror, image):
    registry, _, rest = image.partition("/")
    repository, _, tag = rest.rpartition(":")
    manifest = json.loads(fetch(mirror, registry, f"{repository}/manifests/{tag}"))
    if "manifests" in manifest:
        wanted = MACHINES.get(platform.machine(), platform.machine())
        chosen = next(
            each
            for each in manifest["manifests"]
            if (each.get("platform") or {}).get("architecture") == wanted
        )["digest"]
        manifest = json.loads(fetch(mirror, registry, f"{repository}/manifests/{chosen}", chosen))
    size = 0
    for each in [manifest["config"], *manifest["layers"]]:
        data = fetch(mirror, registry, f"{repository}/blobs/{each['digest']}", each["digest"])
        size += len(data)
    print(f"ok: {image} through {mirror}, {size} bytes, every digest checked")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
