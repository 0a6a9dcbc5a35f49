"""One workshop for all tests of images: each target is built once in a session."""

from __future__ import annotations

import pytest

from tests.images.building import TARGETS, Workshop
from tests.servers.podman import Podman


@pytest.fixture(scope="session")
def workshop(podman: Podman, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    made = Workshop(podman, tmp_path_factory.mktemp("images"))
    made.prepare(*TARGETS, "trace")
    return made


@pytest.fixture(scope="session", params=TARGETS)
def image(workshop: Workshop, request: pytest.FixtureRequest) -> str:
    return workshop.build(request.param)


@pytest.fixture(scope="session")
def agent_image(workshop: Workshop) -> str:
    return workshop.build("agent")
