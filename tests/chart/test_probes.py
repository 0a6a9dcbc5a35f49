"""What the probes of the chart's containers ask, and how long they wait."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.chart.charting import pod_specs, render
from tests.chart.matrix import MATRIX

Json = dict[str, Any]
PRIVILEGED = "mounter"

cases = pytest.mark.parametrize("case", MATRIX)


@cases
def test_long_running_containers_have_probes(case: str) -> None:
    for name, spec in pod_specs(render(MATRIX[case])):
        if name.startswith(("Pod/", "Job/")):
            continue  # helm's test and its hooks run once
        for each in spec["containers"]:
            probes = {"livenessProbe"}
            # The mounter serves the agent alone, whose readiness includes it.
            probes |= set() if each["name"] == PRIVILEGED else {"startupProbe", "readinessProbe"}
            assert probes <= set(each), name


@cases
def test_pods_are_ready_soon_and_may_start_for_minutes(case: str) -> None:
    """kubelet's first probe is before the program runs: an answer is noticed one period later."""
    for _, spec in pod_specs(render(MATRIX[case])):
        for each in spec["containers"]:
            if "startupProbe" not in each:
                continue
            startup = each["startupProbe"]
            ready = each.get("readinessProbe", {"periodSeconds": 0})
            assert startup["periodSeconds"] + ready["periodSeconds"] <= 3, each["name"]
            assert startup["periodSeconds"] * startup["failureThreshold"] >= 120, each["name"]


@cases
def test_no_probe_starts_an_interpreter(case: str) -> None:
    """On a busy node that takes longer than a probe may, and kubelet kills a container that works."""
    for _, spec in pod_specs(render(MATRIX[case])):
        for each in spec["containers"]:
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                command = each.get(probe, {}).get("exec", {}).get("command", ["sh", "-c", ""])
                assert command[:2] == ["sh", "-c"], each["name"]
                # Built-ins of any shell: the base image need not have anything else.
                words = set(re.findall(r"(?:^|&& |\|\| |; )(\S+)", command[2]))
                assert words <= {"read", "["}, each["name"]
