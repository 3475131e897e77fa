"""`manifest.json` means complete, and names what made it."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines import manifests


@dataclass(frozen=True)
class Config:
    b: tuple[int, ...]
    a: str = "x"


def test_a_manifest_is_read_back(tmp_path: Path) -> None:
    written = manifests.write_manifest(str(tmp_path), kind="label_pca", content={"numbers": [1, 2]})
    assert (
        manifests.read_manifest(str(tmp_path), kind="label_pca") == written == {"kind": "label_pca", "numbers": [1, 2]}
    )


@pytest.mark.parametrize(
    ("kind", "job"), [("prepared_dataset", "prepare"), ("label_pca", "fit_label_pca"), ("model", "train")]
)
def test_no_manifest_names_the_job_that_writes_it(tmp_path: Path, kind: str, job: str) -> None:
    with pytest.raises(ValueError, match=rf"holds no manifest.json, so it is not a finished {kind}; .*jobs/{job}.py"):
        manifests.read_manifest(str(tmp_path / "absent"), kind=kind)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match="holds no manifest.json"):
        manifests.read_manifest(str(tmp_path / "file"), kind=kind)


def test_another_kind_and_strange_json_are_refused(tmp_path: Path) -> None:
    manifests.write_manifest(str(tmp_path), kind="model", content={})
    with pytest.raises(ValueError, match="is a 'model', expected a 'prepared_dataset'; check the path"):
        manifests.read_manifest(str(tmp_path), kind="prepared_dataset")
    (tmp_path / "manifest.json").write_text("[1]")
    with pytest.raises(ValueError, match="is a 'list', expected a 'model'"):
        manifests.read_manifest(str(tmp_path), kind="model")


def test_digests_depend_on_values_not_on_order() -> None:
    assert manifests.digest({"a": "x", "b": (1, 2)}) == manifests.digest(Config(b=(1, 2)))
    assert manifests.digest(Config(b=(1, 2))) != manifests.digest(Config(b=(1, 3)))
    assert manifests.digest({"b": [1, 2], "a": "x"}) == manifests.digest({"a": "x", "b": [1, 2]})


def _copy_packages(to: Path) -> None:
    for package in manifests.PACKAGES:
        source = Path(manifests.__file__).parent.parent / package
        shutil.copytree(source, to / package, ignore=shutil.ignore_patterns("__pycache__"))


def _commit_seen_by_a_copy(folder: Path) -> str:
    """Runs `code_commit` of a copy of the packages in another process."""
    code = (
        f"import sys; sys.path.insert(0, {str(folder)!r}); "
        "from pipelines import manifests; print(manifests.code_commit())"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    return process.stdout.strip()


def _git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false", "-c", "core.autocrlf=false")
    process = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return process.stdout.strip()


def test_the_commit_of_a_checkout_is_named_and_marked_when_files_differ(tmp_path: Path) -> None:
    _git(tmp_path, "init", "--quiet")
    (tmp_path / "file").write_text("one")
    _git(tmp_path, "add", "file")
    _git(tmp_path, "commit", "--quiet", "--message=x")
    head = _git(tmp_path, "rev-parse", "HEAD")
    _copy_packages(tmp_path)
    assert _commit_seen_by_a_copy(tmp_path) == head
    (tmp_path / "file").write_text("two")
    assert _commit_seen_by_a_copy(tmp_path) == f"{head}-dirty"


def test_outside_a_checkout_the_code_is_named_by_the_trees_that_git_gives_it(tmp_path: Path) -> None:
    """As in a submitted job or an installed package; a checkout that happens to lie around it is not taken for it."""
    _git(tmp_path, "init", "--quiet")
    _git(tmp_path, "commit", "--quiet", "--allow-empty", "--message=x")
    copy = tmp_path / "site-packages"
    copy.mkdir()
    _copy_packages(copy)
    (copy / "segcore" / "run").write_text("#!/bin/sh")
    (copy / "segcore" / "run").chmod(0o755)
    (copy / "segcore" / "layers-first").write_text("git sorts it before the folder layers/")
    seen = _commit_seen_by_a_copy(copy)  # which leaves a __pycache__
    _git(copy, "init", "--quiet")
    (copy / ".gitignore").write_text("__pycache__/")
    _git(copy, "add", "--all")
    _git(copy, "commit", "--quiet", "--message=x")
    expected = [_git(copy, "rev-parse", f"HEAD:{package}") for package in manifests.PACKAGES]
    assert seen == "-".join(["trees", *expected]) == manifests.code_trees(copy)
    (copy / "segcore" / "run").write_text("#!/bin/bash")
    assert manifests.code_trees(copy).startswith(f"trees-{expected[0]}-")
    assert manifests.code_trees(copy) != seen
