"""Session-wide settings and fixtures. Environment variables are set before any test module imports Ray or MLflow."""

import os

os.environ.update(
    RAY_AUTH_MODE="disabled",
    RAY_USAGE_STATS_ENABLED="0",
    MLFLOW_DISABLE_TELEMETRY="true",
    RAY_DATA_DISABLE_PROGRESS_BARS="1",
    RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S="120",
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.1",
    RAY_memory_monitor_refresh_ms="0",  # the monitor counts other programs' memory and kills innocent workers
    AWS_EC2_METADATA_DISABLED="true",
    MPLBACKEND="Agg",
    OMP_NUM_THREADS="1",  # small tensors: a pool of threads costs more than it saves, three times so beside Ray
)
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("MLFLOW_TRACKING_URI", None)

import logging
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipelines.processes import command_of, kill, started_with

SHARED = Path(__file__).resolve().parents[2] / "shared"


ON_RAY = pytest.StashKey[set[Path]]()
"""Files with a test on the session's Ray."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is longest begins first: the night on S3, then what uses Ray, then the networks' contract.

    With pytest-xdist (`-n 2 --dist loadfile --no-loadscope-reorder`) modules stay together, for the sake of their
    fixtures, and each process has a Ray of its own. (Its groups, `--dist loadgroup`, have no effect with pytest 9.2.)
    """
    on_ray = {item.path for item in items if "ray_session" in getattr(item, "fixturenames", ())}
    config.stash[ON_RAY] = on_ray

    def place(item: pytest.Item) -> tuple[bool, ...]:
        return (
            item.path.parent.name != "integration",
            item.path not in on_ray,
            item.path.name != "test_contract.py",
        )

    items.sort(key=place)  # stable


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Ray ends behind the last file that uses it: idle it takes a tenth of a core, for each of the test processes."""
    ray = sys.modules.get("ray")
    if ray is not None and item.path not in item.config.stash[ON_RAY] and ray.is_initialized():
        ray.shutdown()


@pytest.fixture(scope="session", autouse=True)
def nothing_outlives_the_tests() -> Iterator[None]:
    """What the tests of this process have started, and what that has started, has ended when they have."""
    name, value = "SEGPIPE_TEST_PROCESS", uuid.uuid4().hex
    os.environ[name] = value  # every process below inherits it, orphans too
    yield
    deadline = time.monotonic() + 30  # Ray's daemons take some seconds
    while (left := started_with(name, value)) and time.monotonic() < deadline:
        time.sleep(0.2)
    commands = [command_of(pid) for pid in left]
    kill(left)
    assert not commands, f"these processes outlived the tests, and were killed: {commands}"


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One embedded Ray for the whole session, with more logical CPUs than cores: actors + workers + one reader fit."""
    import ray

    ray.init(
        address="local",
        num_cpus=6,
        include_dashboard=False,
        object_store_memory=300 * 2**20,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def camvid_source() -> Path:
    """The CamVid copy beside the checkout; a user's clone has none."""
    folder = SHARED / "data" / "camvid"
    if not folder.is_dir():
        pytest.skip("CamVid is not beside this checkout (../shared/data/camvid)")
    return folder


@pytest.fixture(scope="session")
def weights_folder() -> Path:
    """ImageNet-trained backbones beside the checkout; a user's clone has none."""
    folder = SHARED / "weights"
    if not folder.is_dir():
        pytest.skip("backbone weights are not beside this checkout (../shared/weights)")
    return folder
