"""SIGTERM to a training's driver (`ray job stop`, a scheduler): a checkpoint first, if it can be had in seconds."""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import ray

logger = logging.getLogger(__name__)

STOP_SECONDS = 20.0
"""How long to wait for it. Who sent the signal may send SIGKILL earlier (`ray job stop`: after 3 s); then the last
checkpoint before is what counts."""
POLL_SECONDS = 0.1


@contextlib.contextmanager
def checkpoint_on_sigterm(board: Any) -> Iterator[None]:
    """Within the block the first SIGTERM asks the workers for a checkpoint, and interrupts when it is there.

    Or after `STOP_SECONDS`. A second one interrupts at once. Only where SIGTERM raises KeyboardInterrupt outside
    (`pipelines.cluster`), and in the main thread, whose business signals are.

    Raises:
        KeyboardInterrupt: on SIGTERM.
    """
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield
        return
    asked = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        threading.Thread(target=save_then_interrupt, name="stop", daemon=True).start()

    def save_then_interrupt() -> None:
        logger.info("told to stop: waiting up to %.0f s for a checkpoint", STOP_SECONDS)
        try:
            saved = _saved(board)
        except Exception:  # the cluster is going down too
            logger.debug("the workers cannot be asked for a checkpoint", exc_info=True)
            saved = False
        logger.info("stopping %s", "after a checkpoint" if saved else "without a new checkpoint")
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _saved(board: Any) -> bool:
    ray.get(board.stop.remote(), timeout=STOP_SECONDS)
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline:
        if ray.get(board.has_saved.remote(), timeout=STOP_SECONDS):
            return True
        time.sleep(POLL_SECONDS)
    return False
