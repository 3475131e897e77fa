"""`manifest.json`: written last, so its presence means that the folder is complete."""

import dataclasses
import hashlib
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from pipelines import storage

MANIFEST = "manifest.json"


PACKAGES = ("pipelines", "segcore")


@cache
def code_commit() -> str:
    """The commit of this code, with `-dirty` where tracked files differ from it; outside a checkout its `code_trees`.

    A submitted job and an installed package have no `.git`.
    """
    root = Path(__file__).resolve().parent.parent
    try:
        described = subprocess.run(
            # --git-dir: an installed copy must not take the commit of a checkout that happens to lie around it.
            [
                "git",
                "-C",
                str(root),
                f"--git-dir={root / '.git'}",
                "describe",
                "--always",
                "--dirty",
                "--abbrev=40",
                "--exclude=*",
            ],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return code_trees(root)
    return described.stdout.strip()


def code_trees(root: Path) -> str:
    """What git calls the content of the two packages below `root`: `trees-<pipelines>-<segcore>`, 40 digits each.

    They need no git here, and lead to the commit in any clone that has it:
    `for c in $(git rev-list --all); do echo $c trees-$(git rev-parse $c:pipelines)-$(git rev-parse $c:segcore); done`
    """
    return "-".join(["trees", *(_git_tree(root / package).hex() for package in PACKAGES)])


def _git_tree(folder: Path) -> bytes:
    """Git's object id of a folder (gitformat-pack(5); SHA-1), without what Python leaves there."""
    entries: list[tuple[bytes, bytes]] = []
    for path in folder.iterdir():
        if path.name == "__pycache__" or path.suffix == ".pyc":
            continue
        name = os.fsencode(path.name)
        if path.is_dir():
            entries.append((name + b"/", b"40000 " + name + b"\0" + _git_tree(path)))  # git sorts folders by "name/"
        else:
            mode = b"100755" if path.stat().st_mode & 0o100 else b"100644"
            entries.append((name, mode + b" " + name + b"\0" + _git_object(b"blob", path.read_bytes())))
    return _git_object(b"tree", b"".join(entry for _, entry in sorted(entries)))


def _git_object(kind: bytes, content: bytes) -> bytes:
    return hashlib.sha1(b"%s %d\0" % (kind, len(content)) + content, usedforsecurity=False).digest()


def write_manifest(folder: str, *, kind: str, content: dict[str, Any]) -> dict[str, Any]:
    """Complete an artifact folder: write its manifest, all-or-nothing, and return it.

    Args:
        folder: URI of the artifact folder.
        kind: what the folder holds: `prepared_dataset`, `label_pca`, `model`, `evaluation`.
        content: configuration, input digests and counts; JSON values only.
    """
    manifest = {"kind": kind, **content}
    storage.write_atomic(storage.join(folder, MANIFEST), storage.json_bytes(manifest))
    return manifest


def read_manifest(folder: str, *, kind: str) -> dict[str, Any]:
    """Read the manifest of a complete artifact folder.

    Raises:
        ValueError: there is no manifest (the path is wrong, or its stage has not finished), or it is of another kind.
    """
    uri = storage.join(folder, MANIFEST)
    try:
        manifest: Any = storage.read_json(uri)
    except (FileNotFoundError, NotADirectoryError):
        stage = {
            "prepared_dataset": "prepare",
            "label_pca": "fit_label_pca",
            "model": "train",
            "evaluation": "evaluate",
        }
        raise ValueError(
            f"{folder!r} holds no {MANIFEST}, so it is not a finished {kind}; "
            f"check the path, or run (again) jobs/{stage.get(kind, kind)}.py, which writes it last"
        ) from None
    found = manifest.get("kind") if isinstance(manifest, dict) else type(manifest).__name__
    if found != kind:
        raise ValueError(f"{folder!r} is a {found!r}, expected a {kind!r}; check the path")
    checked: dict[str, Any] = manifest
    return checked


def digest(value: Any) -> str:
    """SHA-256 of a JSON value or a config dataclass, independent of key order."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    return storage.sha256(storage.json_bytes(value))
