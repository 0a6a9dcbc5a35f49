"""What the doctor says of a CPU: which variants vLLM serves on it, where no GPU serves them."""

from __future__ import annotations

import pytest

from cache_agent.store.space import Amount
from tests.weightyard.doctor.sound import NODE
from weightyard.doctor.facts import Gpus
from weightyard.doctor.node_checks import MachineRole, NodePurpose, check_node, cpu
from weightyard.doctor.result import Finding, Level

LAPTOP = NodePurpose(MachineRole.LAPTOP, Amount.parse("5%"))


def judge(flags: tuple[str, ...] | None, *, gpus: int = 0) -> Finding:
    facts = NODE.model_copy(update={"cpu_flags": flags, "gpus": Gpus(count=gpus)})
    finding = cpu(facts, LAPTOP)
    assert finding in check_node(facts, LAPTOP)
    return finding


@pytest.mark.parametrize(
    ("flags", "level", "seen"),
    [
        (("avx2", "avx512f", "amx_tile"), Level.OK, "vLLM serves bf16, int8, int4 on it"),
        (("avx2", "avx512f"), Level.OK, "vLLM serves bf16, int8, int4 on it (but no experts in int8 or int4)"),
        (("avx2",), Level.WARN, "vLLM serves bf16 and int8 on it (but no experts in int8), not int4"),
        (("asimd",), Level.WARN, "vLLM serves bf16 and int8 on it, not int4"),
        ((), Level.WARN, "vLLM has no kernels for its instruction sets"),
        (None, Level.OK, "its instruction sets are unknown"),
    ],
)  # fmt: skip
def test_a_cpu_that_serves(flags: tuple[str, ...] | None, level: Level, seen: str) -> None:
    finding = judge(flags)
    assert (finding.level, finding.seen) == (level, seen)


def test_what_is_missing_comes_with_advice() -> None:
    assert judge(("avx2",)).advice == "For int4, serve on a CPU with AVX-512 or on a GPU."


def test_beside_gpus_the_cpu_may_be_anything() -> None:
    assert judge((), gpus=1).level is Level.OK
