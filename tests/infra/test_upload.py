"""What `ray job submit --working-dir . --runtime-env runtime_env.yaml` uploads, measured by Ray's own functions."""

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import yaml
from ray._private.runtime_env import packaging

ROOT = Path(__file__).resolve().parents[2]
MAX_UPLOAD_BYTES = 10 * 10**6
EXCLUDES = yaml.safe_load((ROOT / "runtime_env.yaml").read_text())["excludes"]


def _upload(folder: Path, target: Path) -> list[str]:
    """Pack a folder as Ray does; returns the packed files."""
    packaging.create_package(str(folder), target, include_gitignore=True, excludes=EXCLUDES, logger=None)
    with zipfile.ZipFile(target) as package:
        return [name for name in package.namelist() if not name.endswith("/")]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone, as somebody has it who works in it: with an environment, data and results."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("measures a clone, and this is none")
    folder = tmp_path_factory.mktemp("checkout") / "segpipe"
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", str(folder)], check=True, timeout=120)
    for name in ("runtime_env.yaml", ".gitignore"):  # as they are now
        shutil.copy(ROOT / name, folder)
    large = [".venv/lib/torch.so", "data/x.parquet", "runs/a/model.safetensors", "local/s3/1.dat", "demo/page.html"]
    for name in (
        *large,
        "mlruns/1/a",
        "mlflow.db",
        "infra/.env",
        "tables/masks/a.parquet",
        "segcore/__pycache__/a.pyc",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * 100_000)
    return folder


def test_a_job_takes_the_code_along_and_little_else(checkout: Path, tmp_path: Path) -> None:
    target = tmp_path / "package.zip"
    names = _upload(checkout, target)
    assert {
        "jobs/segment.py",
        "pipelines/segment.py",
        "segcore/metrics.py",
        "pipelines/templates/page.html.jinja",
    } <= set(names)
    assert target.stat().st_size < MAX_UPLOAD_BYTES
    assert not [name for name in names if name.startswith((".git/", ".venv/", "data/", "local/", "demo/", "runs/"))]
    assert "infra/.env" not in names and "mlflow.db" not in names


def test_excludes_do_without_gitignore(checkout: Path, tmp_path: Path) -> None:
    """A working directory may be a copy that has no .gitignore."""
    (checkout / ".gitignore").rename(tmp_path / "ignore")
    try:
        names = _upload(checkout, tmp_path / "package.zip")
    finally:
        (tmp_path / "ignore").rename(checkout / ".gitignore")
    assert sum((checkout / name).stat().st_size for name in names) < MAX_UPLOAD_BYTES
    assert "infra/.env" not in names and "local/s3/1.dat" not in names


def test_a_large_file_would_be_noticed(checkout: Path, tmp_path: Path) -> None:
    big = checkout / "segcore" / "forgotten.bin"
    big.write_bytes(os.urandom(MAX_UPLOAD_BYTES + 1))
    try:
        _upload(checkout, tmp_path / "package.zip")
    finally:
        big.unlink()
    assert (tmp_path / "package.zip").stat().st_size > MAX_UPLOAD_BYTES


def test_the_stated_limit_is_rays() -> None:
    text = (ROOT / "runtime_env.yaml").read_text()
    assert f"{packaging.GCS_STORAGE_MAX_SIZE >> 20} MiB" in text
    assert f"from {packaging.PACKAGE_SIZE_WARNING >> 20} MiB" in text
