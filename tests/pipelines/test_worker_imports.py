"""What Ray's worker processes import: PyTorch only where a network runs, torchvision only to augment images."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_A_NETWORK = (
    "evaluation.slices",
    "health.duplicates",
    "health.examples",
    "health.facts",
    "health.recovery",
    "label_pca.tasks",
    "nightly.listing",
    "prepare_shard",
    "training.rows",
)
"""Modules of the functions that Ray's tasks run, those that need no network; each worker process imports one."""


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        (WITHOUT_A_NETWORK, ("torch", "mlflow")),
        (("evaluation.scoring", "nightly.worker"), ("torchvision", "torch._dynamo", "scipy.ndimage", "mlflow", "timm")),
    ],
    ids=["readers", "networks"],
)
def test_workers_import_nothing_heavy_that_they_do_not_need(
    modules: tuple[str, ...], unwanted: tuple[str, ...]
) -> None:
    program = "import sys\n" + "".join(f"import pipelines.{name}\n" for name in modules)
    program += f"print(*sorted(set({unwanted!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
