"""What this machine's CPU serves with vLLM, for tests that judge the right behaviour on either kind."""

from __future__ import annotations

from modelimage.cpus import cpu_refusal, local_cpu_flags


def serves(variant: str) -> bool:
    """Whether vLLM has kernels for a variant on this CPU; where not, a test expects the refusal."""
    return cpu_refusal("vllm", variant, local_cpu_flags()) is None
