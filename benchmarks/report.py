"""Where benchmarks put their results: one marked section each in `docs/benchmarks.md`, replaced in place.

Run a benchmark from the repository's root as `python benchmarks/NAME.py`; it imports this module as `report` and ends
with `write_section("NAME", markdown)`. Figures are ratios measured in one run, so that a slow day slows both sides; the
machine and the versions stand under each section, because sections are not all measured on one day.
"""

import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"

TITLE = """# Benchmarks

Each section is written by the script that it names. Ratios are taken in one run with the two sides interleaved, and are
the safer reading: absolute figures move with the machine and its load.
"""

PACKAGES = ("numpy", "numba", "torch", "ray", "pyarrow", "scikit-learn", "pydensecrf2", "pycocotools", "pillow")


def write_section(name: str, markdown: str, *, document: Path = DOCUMENT) -> None:
    """Put a benchmark's result into the document: replace its section, or append it where there is none.

    Args:
        name: of the benchmark, lower case with underscores, as in `benchmarks/<name>.py`.
        markdown: heading (level 2), table and reading; the machine's description is appended to it.
        document: the file to change.

    Raises:
        ValueError: `name` is not a lower-case identifier.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"section name {name!r} is not lower case with underscores; use the benchmark's file stem")
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    section = f"{begin}\n{markdown.strip()}\n\n{machine()}\n{end}"
    text = document.read_text() if document.exists() else TITLE
    present = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not present.search(text):
        text = f"{text.rstrip()}\n\n{section}\n"
    text = present.sub(lambda _: section, text)  # a function, so that backslashes in the section stay as they are
    document.parent.mkdir(parents=True, exist_ok=True)
    document.write_text(text)


def machine() -> str:
    """One Markdown line: CPU model, cores, memory, load, accelerator, versions, date."""
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    versions = ", ".join(f"{name} {found}" for name in PACKAGES if (found := _version(name)))
    return (
        f"*{_cpu_model()}, {os.cpu_count()} cores, {_memory_gib()} GiB, {_accelerator()}; load {load} at the end; "
        f"Python {platform.python_version()}, {versions}; {datetime.now(UTC):%Y-%m-%d}.*"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def interleaved_seconds(sides: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, list[float]]:
    """Time several callables in turn, `rounds` times over, so that load that comes and goes meets all of them.

    The order turns round every second round. Call each once before, where it compiles or fills a cache.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name in sides if turn % 2 == 0 else reversed(list(sides)):
            started = time.perf_counter()
            sides[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median over rounds of the ratio of two interleaved series."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gib() -> str:
    try:
        return str(round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30))
    except (ValueError, OSError, AttributeError):
        return "unknown"


def _accelerator() -> str:
    try:
        import torch
    except ImportError:
        return "no accelerator seen"
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
