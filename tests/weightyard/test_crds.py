"""`weightyard crds`: what it prints is what the chart installs; applying changes a cluster once."""

from __future__ import annotations

import asyncio

import pytest
import yaml

from cache_agent.api.kube import kubeconfig
from tests.workspace.controller.fakeapi import FakeApi
from tests.workspace.controller.httpapi import HttpApi
from weightyard.cli import main
from weightyard.commands import crds as command
from weightyard.crds import definitions


def test_printed_definitions_can_be_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["crds"]) == 0
    printed = list(yaml.safe_load_all(capsys.readouterr().out))
    assert printed == list(definitions().values())


def test_applying_twice_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def apply_twice() -> tuple[FakeApi, int]:
        api = FakeApi()
        async with HttpApi(api, keda=False) as served:
            monkeypatch.setattr(kubeconfig, "default_connection", served.connection)
            await command._apply()
            first = len(api.writes)
            await command._apply()
            return api, len(api.writes) - first

    api, changed = asyncio.run(apply_twice())
    names = {name for kind, _, name in api.objects if kind == "CustomResourceDefinition"}
    assert names == set(definitions())
    # As helm's own field manager: it conflicts with others when it installs over definitions that are there.
    kinds = [key for key in api.objects if key[0] == "CustomResourceDefinition"]
    assert {manager for key in kinds for manager in api.managers[key]} == {"helm"}
    assert changed == 0
