"""Ray for a job: the cluster that RAY_ADDRESS names, or an embedded one, with enough logical CPUs in either case.

Ray Data and Ray Train wait without a word when actors and workers hold every logical CPU, so this is checked first.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

CLUSTER_FILE = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` leaves the cluster's description on the head, on which submitted jobs run."""

MALLOC_TUNABLES = {
    # With glibc's defaults up to 40 % of a training's CPU time are page faults: a step's activations go back to the
    # system and are asked for again in the next one, most of all in threads other than the main one, such as Ray
    # Train's, whose arenas consist of pieces of 64 MiB. The peak of memory is at most a sixth higher.
    "hugetlb": 1,  # transparent huge pages
    "arena_max": 1,  # every thread allocates from the one heap that can grow
    "mmap_max": 0,  # large tensors too
    "trim_threshold": 2**40,  # and nothing is given back before the end
}

STORE = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
"""Variables that say where an object store is."""

SUBMITTED_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets this variable for the driver of a submitted job."""

SLOW_START = "timed out during startup"
"""Of the message with which Ray gives up its own start; nothing that it can be told makes it wait for longer."""

SPREAD_THREADS = 16

TASK_RETRIES = 3
"""Of a task whose worker or node is lost."""

UPLOADS_FOLDER = "working_dir_files"
"""Where Ray unpacks what a submitted job has taken along, and starts it."""

LARGE_UPLOAD_BYTES = 100 * 10**6

QUIET_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Off: it sees only finished shards, and a slow network may take longer for one than any limit. Too few CPUs, the
    # cause of real hangs, are refused before (`_check_resources`).
    "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "-1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # train.report() blocks for one interval; the default is 2 s
}


@contextmanager
def ray_cluster(
    *, num_cpus_needed: int, num_gpus_needed: int = 0, why: str, flags: str = "--workers"
) -> Iterator[None]:
    """Connect to Ray for the length of a job, or start an embedded one.

    Where Ray runs already in this process (a test session, a demo that chains stages), that one is used and left alone.

    Args:
        num_cpus_needed: logical CPUs that the job's actors, workers and one reading task hold at once.
        num_gpus_needed: GPUs likewise.
        why: what needs them, for the message: "2 train workers and 1 reader".
        flags: what to lower, for the message.

    Raises:
        KeyboardInterrupt: on Ctrl-C and, where SIGTERM is not handled otherwise, on SIGTERM.
        ValueError: the cluster has too few CPUs or GPUs; the message says how many and what to change.
    """
    for key, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    import ray  # after the environment is set: Ray reads it at import
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # only now: its import sets DEBUG and opens a console

    if UPLOADS_FOLDER in Path.cwd().parts:
        warn_of_large_upload(Path.cwd())
    started = not ray.is_initialized()
    in_main_thread = threading.current_thread() is threading.main_thread()  # signals are its business, here as in Ray
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if started:
            _start(num_cpus_needed)
        if in_main_thread:
            # Ray's own handler of SIGTERM, SystemExit, aborts the process where it waits for a training.
            keep = handlers[signal.SIGTERM] not in (None, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, handlers[signal.SIGTERM] if keep else signal.default_int_handler)
        _check_resources(num_cpus_needed, num_gpus_needed, why, flags)
        yield
    except SystemExit as error:
        # Ray's own handlers: code 15 on SIGTERM during its start; 0, as if all were done, on Ctrl-C in a training.
        raise KeyboardInterrupt from error
    finally:
        if in_main_thread:
            for number, handler in handlers.items():
                if handler is not None:  # None: not Python's, and Python cannot bring it back
                    signal.signal(number, handler)
        if started:
            ray.shutdown()


def warn_of_large_upload(folder: Path) -> None:
    """Say so where a submitted job took along more than `LARGE_UPLOAD_BYTES`, and which line keeps it at home."""
    sizes = {
        entry.name: sum(file.stat().st_size for file in (entry, *entry.rglob("*")) if file.is_file())
        for entry in folder.iterdir()
    }
    total = sum(sizes.values())
    if total > LARGE_UPLOAD_BYTES:
        largest = max(sizes, key=lambda name: sizes[name])
        logger.warning(
            "this job took along %.0f MB, %.0f of them in %s; Ray refuses 512 MiB, and every node fetches them: "
            "add the line '- /%s' to `excludes` in runtime_env.yaml",
            total / 1e6,
            sizes[largest] / 1e6,
            largest,
            largest,
        )


def spread(work: Callable[[T], R], pieces: Sequence[T], *, in_tasks: bool) -> list[R]:
    """Do pieces of work that mostly wait, in Ray tasks where Ray runs and there are several; results in order.

    Args:
        work: a function of a module, whose results are small.
        pieces: of it; what is sent of each stays below 1 MB.
        in_tasks: Ray runs; otherwise threads do it.
    """
    if not in_tasks or len(pieces) < 2:
        with ThreadPoolExecutor(SPREAD_THREADS) as pool:
            return list(pool.map(work, pieces))
    import ray  # reads its environment at import

    @ray.remote(max_retries=TASK_RETRIES)
    def do(piece: T) -> R:
        return work(piece)

    found: list[R] = ray.get([do.remote(piece) for piece in pieces])
    return found


def task_results(
    work: Callable[..., R],
    pieces: Iterator[T],
    *arguments: Any,
    workers: int | None,
    try_again: Sequence[type[Exception]] = (),
) -> Iterator[tuple[T, R]]:
    """Do pieces of work in Ray tasks, a bounded number at a time: each piece with its result, as they come.

    Args:
        work: `work(piece, *arguments)`; a function of a module, whose results are small.
        pieces: drawn as tasks end, so that who gives them can stop early; what is sent of each stays below 1 MB.
        arguments: of every piece.
        workers: tasks at a time; None: as many as the cluster has logical CPUs.
        try_again: exceptions of `work` on which a task is run again, as on the loss of its worker.
    """
    import ray  # reads its environment at import

    task = ray.remote(num_cpus=1)(work).options(max_retries=TASK_RETRIES, retry_exceptions=list(try_again))
    slots = max(cluster_size(), 1)
    # Where the cluster itself lets no more of them run, as many again wait for a place, and none stays empty meanwhile.
    asked_for = 2 * slots if workers is None or workers >= slots else workers
    in_flight: dict[Any, T] = {}
    while True:
        in_flight |= {task.remote(piece, *arguments): piece for piece in islice(pieces, asked_for - len(in_flight))}
        if not in_flight:
            return
        (done, *_), _ = ray.wait(list(in_flight), num_returns=1)
        yield in_flight.pop(done), ray.get(done)


def packed_table(table: "pa.Table") -> bytes:
    """A table as an Arrow stream, for the way through Ray, which takes more than 1 ms to pack a table itself."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def unpacked_table(data: bytes) -> "pa.Table":
    """The table of `packed_table`."""
    import pyarrow as pa

    return pa.ipc.open_stream(data).read_all()


def actor_cluster(*, workers: int, threads: int, use_gpu: bool = False) -> AbstractContextManager[None]:
    """`ray_cluster` for actors that run a network, fed by one reading task."""
    return ray_cluster(
        num_cpus_needed=workers * threads + 1,
        num_gpus_needed=workers if use_gpu else 0,
        why=f"{workers} actor(s) of {threads} thread(s) and 1 reader",
        flags="--workers or --threads",
    )


def _start(num_cpus_needed: int) -> None:
    import ray

    address = os.environ.get("RAY_ADDRESS") or "local"
    if address != "local":
        # Workers have their own environment. What says where the store is goes with the job; credentials never do: Ray
        # shows a runtime environment to everybody. A submitted job's environment has been given by who submitted it.
        given = {} if SUBMITTED_JOB in os.environ else {name: os.environ[name] for name in STORE if name in os.environ}
        runtime_env = {"env_vars": given} if given else None
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, runtime_env=runtime_env)
        return
    # Embedded Ray needs no token: it listens on this machine only and dies with the job.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody reclaims this machine
    try:
        _start_embedded(num_cpus_needed)
    except Exception as error:  # Ray raises this very class
        if SLOW_START not in str(error):
            raise
        logger.warning("Ray did not come up in the 30 s that it allows itself; this machine is busy, trying once more")
        _start_embedded(num_cpus_needed)


def _start_embedded(num_cpus_needed: int) -> None:
    import ray

    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, num_cpus_needed),  # logical: a laptop of two cores can train on two workers
        include_dashboard=False,
        log_to_driver=False,  # workers' own lines; errors come as exceptions, progress through the driver
        logging_level=logging.WARNING,
    )


def cluster_size(kind: str = "CPU") -> int:
    """Logical CPUs or GPUs that the cluster has, or that it may start on demand if those are more; Ray must run."""
    import ray

    return max(int(ray.cluster_resources().get(kind, 0)), _on_demand(kind))


def check_memory(*, task_bytes: int, driver_bytes: int, why: str, remedy: str) -> None:
    """Refuse a job whose tasks no node, or whose own process its node, has the memory for: Ray would wait for ever.

    Args:
        task_bytes: what one task reserves.
        driver_bytes: what this process will take.
        why: what needs it, for the message.
        remedy: what to change, for the message.

    Raises:
        ValueError: the message says how much was found and needed.
    """
    import ray

    here = ray.get_runtime_context().get_node_id()
    memory = {node["NodeID"]: node["Resources"].get("memory", 0.0) for node in ray.nodes() if node["Alive"]}
    if not CLUSTER_FILE.expanduser().exists() and max(memory.values()) < task_bytes:
        raise ValueError(
            f"the largest node of this Ray cluster has {max(memory.values()) / 1e9:.1f} GB for tasks and {why} "
            f"take(s) {task_bytes / 1e9:.1f} GB in each; {remedy}"
        )
    if memory[here] < driver_bytes:
        raise ValueError(
            f"the node that this job runs on has {memory[here] / 1e9:.1f} GB and {why} take(s) "
            f"{driver_bytes / 1e9:.1f} GB in the job's own process; {remedy}"
        )


def worker_environment(*, use_gpu: bool) -> dict[str, Any]:
    """Ray `runtime_env` of a process that runs a network.

    On a CPU, where activations come from malloc, with `MALLOC_TUNABLES`: glibc reads them at the start of a process, so
    they cannot be set inside.
    """
    tunables = ":".join(f"glibc.malloc.{name}={value}" for name, value in MALLOC_TUNABLES.items())
    return {} if use_gpu else {"env_vars": {"GLIBC_TUNABLES": tunables}}


def _on_demand(kind: str) -> int:
    """CPUs or GPUs of all machines that the autoscaler of `ray up`, or of KubeRay, may start; 0 where there is none."""
    file = CLUSTER_FILE.expanduser()
    if not file.exists():
        from ray._private.state import state  # Ray has no public way to ask

        return int((state.get_max_resources_from_cluster_config() or {}).get(kind, 0))
    types = yaml.safe_load(file.read_text())["available_node_types"].values()
    return sum(int(each.get("max_workers", 0) * each.get("resources", {}).get(kind, 0)) for each in types)


def _check_resources(num_cpus: int, num_gpus: int, why: str, flags: str) -> None:
    import ray

    resources = ray.cluster_resources()
    for kind, needed in (("CPU", num_cpus), ("GPU", num_gpus)):
        running = int(resources.get(kind, 0))
        if running >= needed:
            continue
        found = cluster_size(kind)
        if found < needed:
            raise ValueError(
                f"this Ray cluster has {found} logical {kind}s and {why} need {needed}; ask for fewer {flags}, "
                f"or start Ray with more (ray start --head --num-{kind.lower()}s={needed})"
            )
        logger.info(
            "%d of %d logical %ss are running; the cluster starts machines for the rest, which takes minutes",
            running,
            needed,
            kind,
        )
