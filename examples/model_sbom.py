"""Turns `weightyard --json inspect IMAGE` into a CycloneDX SBOM: the model as component, its files with their sha256.

weightyard --json inspect IMAGE | python3 examples/model_sbom.py > sbom.cdx.json
"""

from __future__ import annotations

import json
import sys
from typing import Any


def sbom(inspected: dict[str, Any]) -> dict[str, Any]:
    """The CycloneDX 1.6 document. The same image gives the same bytes: it names no time and no serial number."""
    record = inspected["record"]
    files = [
        {
            "type": "file",
            "bom-ref": f"file:{each['path']}",
            "name": each["path"],
            "hashes": [{"alg": "SHA-256", "content": each["sha256"]}],
        }
        for each in record["files"]
    ]
    model = {
        "type": "machine-learning-model",
        "bom-ref": inspected["key"],
        "name": inspected["image"].rpartition(":")[0],
        "version": inspected["digest"],
    }
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": model},
        "components": files,
        "dependencies": [{"ref": inspected["key"], "dependsOn": [f["bom-ref"] for f in files]}],
    }


if __name__ == "__main__":
    json.dump(sbom(json.load(sys.stdin)), sys.stdout, indent=2)
