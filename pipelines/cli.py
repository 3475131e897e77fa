"""How every job starts and ends: parse, run one stage, print one closing line, exit with a code for scripts."""

import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, Protocol, TypeVar

from pipelines.exit_codes import BAD_INPUT, DONE, FAILED, INTERRUPTED, JobStoppedError
from pipelines.store_errors import StoreUnavailableError

T = TypeVar("T")


def process_began() -> float:
    """When this process was started, seconds since 1970; now, where the system does not tell."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])  # since the system's start
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        age = 0.0
    return time.time() - age


class Result(Protocol):
    """What a stage returns: anything that can say in one line where its result is."""

    @property
    def closing_line(self) -> str: ...


def main(parse: Callable[[], T], stage: Callable[[T], Result]) -> NoReturn:
    """Parse the command line, run the stage, print its closing line and exit.

    Exit codes: `pipelines.exit_codes`; only a bug or a lost cluster comes with a traceback. SIGTERM is treated as
    Ctrl-C, so that `ray job stop` and schedulers end a job cleanly.
    """
    line = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=line, datefmt="%H:%M:%S")
    for noisy in ("ray.data", "ray.train", "mlflow", "alembic", "botocore", "aiobotocore", "fsspec", "s3fs", "onnx_ir"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")  # ray's own deprecations, not the user's
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        result = stage(_parsed(parse))
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except JobStoppedError as stopped:
        print(f"stopped: {stopped}", file=sys.stderr)
        sys.exit(stopped.exit_code)
    except StoreUnavailableError as error:  # a scheduler may try again
        print(f"error: {error}; the same command continues where it stopped", file=sys.stderr)
        sys.exit(FAILED)
    except (ValueError, FileNotFoundError, PermissionError) as error:
        print(f"error: {error}", file=sys.stderr)
        logging.getLogger(__name__).debug("traceback of the error above", exc_info=True)
        sys.exit(BAD_INPUT)
    print(result.closing_line)
    sys.exit(DONE)


def _parsed(parse: Callable[[], T]) -> T:
    """The config, which checks itself while it is parsed; or the end, after `--help | head`."""
    try:
        return parse()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be flushed goes there
        sys.exit(DONE)
