"""`helm test`: asks an agent whether it is ready and whether its mirror answers; pulls an image where one is named.

    smoke.py http://AGENT:OBSERVE_PORT http://AGENT:MIRROR_PORT [REGISTRY/REPOSITORY:TAG]

Without an image it needs nothing outside of the cluster. An image is pulled byte for byte, and every digest is checked.

Standard library only: it runs in the agent's image with nothing else.
"""

import hashlib
import json
import platform
import sys
import urllib.error
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


def ask(agent, mirror):
    """Exits when the agent isn't ready, with its problems, or the mirror doesn't speak the registry protocol."""
    for url in (f"{agent}/readyz", f"{mirror}/v2/"):
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                answer.read()
        except urllib.error.HTTPError as error:
            sys.exit(f"{url}: {error.code} {error.read(2000).decode(errors='replace')}")
    print(f"ok: {agent} is ready, {mirror} answers")


def pull(mirror, image):
    """Pulls an image for this machine's architecture."""
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
    ask(sys.argv[1], sys.argv[2])
    for each in sys.argv[3:]:
        pull(sys.argv[2], each)
