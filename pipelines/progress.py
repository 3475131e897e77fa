"""Progress that a person can watch and a log can keep: a bar on a terminal, a line every few seconds elsewhere."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LOG_INTERVAL_SECONDS = 10.0

logger = logging.getLogger(__name__)


@contextmanager
def progress(description: str, *, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Show the progress of `total` units of work; call the yielded function with the units just done.

    Args:
        description: what is being done: "prepare camvid".
        total: units of work in all.
        unit: their plural name: "shards", "images".
    """
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task(description, total=total)
            yield lambda done: bar.advance(task, done)
        return
    started = last_logged = time.monotonic()
    finished = 0

    def advance(done: int) -> None:
        nonlocal finished, last_logged
        finished += done
        now = time.monotonic()
        if finished >= total or now - last_logged >= LOG_INTERVAL_SECONDS:
            last_logged = now
            elapsed = now - started
            left = f", about {elapsed * (total - finished) / finished:.0f} s left" if 0 < finished < total else ""
            logger.info("%s: %d of %d %s, %.0f s%s", description, finished, total, unit, elapsed, left)

    yield advance
