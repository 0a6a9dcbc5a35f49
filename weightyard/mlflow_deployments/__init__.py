"""MLflow's deployment target `weightyard`: what its plugin manager loads by the entry point `mlflow.deployments`.

MLflow looks here for `run_local`, `target_help` and exactly one subclass of BaseDeploymentClient. See docs/mlflow.md.
"""

from __future__ import annotations

from weightyard.mlflow_deployments.client import (
    WeightyardDeploymentClient,
    run_local,
    target_help,
)

__all__ = ["WeightyardDeploymentClient", "run_local", "target_help"]
