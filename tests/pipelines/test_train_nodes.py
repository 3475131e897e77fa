"""Trainings on three nodes, of which one dies or is taken away with notice."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines import storage, tracking
from tests.pipelines.learnable_dataset import NUM_TRAIN, tiny_recipe, write_learnable_dataset
from tests.pipelines.processes import needs_proc
from tests.pipelines.trained_jobs import TrainJob, logged_batches, run_id

pytestmark = [pytest.mark.slow, needs_proc]

BATCH_SIZE = 8
STEPS = NUM_TRAIN // BATCH_SIZE

PROGRAM = """
import json
import os
import sys
import threading
import time
from pathlib import Path

os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
os.environ["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"] = "0.5"

import ray
from ray.cluster_utils import Cluster

from pipelines import cli
from pipelines.train import TrainConfig, train
from tests.pipelines.learnable_dataset import tiny_recipe

settings = json.loads(sys.argv[1])
cpus_per_node, victim, log = settings.pop("cpus_per_node"), settings.pop("victim"), Path(settings.pop("log"))
recipe = tiny_recipe(epochs=settings.pop("epochs"), batch_size=settings.pop("batch_size"))
health = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 5}
memory = 150 * 2**20
# The head, with the driver and Ray Train's controller, computes nothing.
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": memory,
    "include_dashboard": False, "_system_config": health})
nodes = [cluster.add_node(num_cpus=cpus, object_store_memory=memory) for cpus in cpus_per_node]
ray.init(address=cluster.address, log_to_driver=False)
cluster.wait_for_nodes()


def node_of(pid):
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    (node,) = [node for node in nodes if node.all_processes["raylet"][0].process.pid == parent]
    return node


def kill_node():
    token = Path(victim["token"])
    while not (token.exists() and token.read_text()):
        time.sleep(0.05)
    time.sleep(1.0)  # what is on its way to the controller arrives
    cluster.remove_node(node_of(int(token.read_text())), allow_graceful=False)


def drain_node():
    from ray.core.generated import autoscaler_pb2

    while "epoch 1/" not in log.read_text():
        time.sleep(0.05)
    busy = [actor for actor in ray._private.state.actors().values()
        if "RayTrainWorker" in actor["ActorClassName"] and actor["State"] == "ALIVE"]
    (node,) = [node for node in nodes if node.node_id == busy[0]["Address"]["NodeID"]]
    client = ray._raylet.GcsClient(address=cluster.address)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = client.drain_node(node.node_id, reason, "taken away", int(1000 * (time.time() + 30)))
    assert accepted, why
    while "a node is being taken away" not in log.read_text():
        time.sleep(0.05)
    time.sleep(1.0)
    cluster.remove_node(node, allow_graceful=False)


threading.Thread(target={"kill": kill_node, "drain": drain_node}[victim["how"]], daemon=True).start()
cli.main(lambda: TrainConfig(recipe=recipe, experiment="tests", **settings), train)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_learnable_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture
def settings(data: str, tmp_path: Path) -> dict[str, object]:
    (tmp_path / "log").touch()
    return {
        "data": data,
        "output": str(tmp_path),
        "name": "nodes",
        "tracking_uri": tracking.connect(f"sqlite:///{tmp_path}/store.db"),
        "checkpoint_steps": 1,
        "epochs": 3,
        "batch_size": BATCH_SIZE,
        "log": str(tmp_path / "log"),
    }


def steps_logged(tmp_path: Path) -> list[tuple[int, float]]:
    points = MlflowClient().get_metric_history(run_id(tmp_path / "nodes"), "train/learning_rate")
    return [(point.step, point.value) for point in points]


def test_a_node_dies_and_as_many_workers_go_on_elsewhere(settings: dict[str, object], tmp_path: Path) -> None:
    token = tmp_path / "token"
    settings |= {"workers": 2, "cpus_per_node": [3, 3], "victim": {"how": "kill", "token": str(token)}}
    with TrainJob(settings, tmp_path / "log", program=PROGRAM, faults=f"train.step={STEPS + 2}@{token}") as job:
        job.finish()
    said = (tmp_path / "log").read_text()
    assert f"continuing in epoch 2, after 2 of {STEPS} steps" in said, said
    assert [step for step, _ in steps_logged(tmp_path)] == [0, 1, 2]
    assert storage.read_json(str(tmp_path / "nodes" / "result.json"))["epochs"] == 3


def test_an_elastic_group_shrinks_with_its_cluster_and_keeps_its_steps(
    settings: dict[str, object], tmp_path: Path
) -> None:
    """Three workers share batches of 8 as 2, 3 and 3; a node dies, two go on with what nobody has seen."""
    token, seen = tmp_path / "token", tmp_path / "seen"
    settings |= {"workers": "1-3", "cpus_per_node": [1, 1, 1], "victim": {"how": "kill", "token": str(token)}}
    faults = f"train.step={STEPS + 2}@{token}"
    with TrainJob(settings, tmp_path / "log", program=PROGRAM, faults=faults, batch_log=seen) as job:
        job.finish()
    said = (tmp_path / "log").read_text()
    assert "3 worker(s) on cpu" in said and "another number than before" in said, said
    recipe = tiny_recipe(epochs=3)
    rates = [0.02 * (1 - epoch / 3) ** recipe.optim.power for epoch in range(3)]
    assert [step for step, _ in steps_logged(tmp_path)] == [0, 1, 2]
    assert [rate for _, rate in steps_logged(tmp_path)] == pytest.approx(rates)
    visits = logged_batches(seen)
    for epoch in range(3):
        steps = {step for one, step, _ in visits if one == epoch}
        assert steps == set(range(STEPS))
    # The second epoch: two steps of three workers, then the rest of as many as were left.
    first = [rows for (epoch, step, _), found in visits.items() if (epoch, step) in ((1, 0), (1, 1)) for rows in found]
    last = [found[-1] for (epoch, step, rank), found in visits.items() if epoch == 1 and step >= 2 and rank < 2]
    before = [row for rows in first for row in rows]
    after = [row for rows in last for row in rows]
    assert len(before) == len(set(before)) == 2 * BATCH_SIZE
    assert len(after) == len(set(after)) == 2 * BATCH_SIZE
    assert not set(before) & set(after)


def test_a_node_that_is_taken_away_with_notice_costs_nothing(settings: dict[str, object], tmp_path: Path) -> None:
    settings |= {"workers": 2, "cpus_per_node": [3, 3], "victim": {"how": "drain"}, "epochs": 12}
    settings |= {"checkpoint_steps": 0, "checkpoint_minutes": 0.0}
    with TrainJob(settings, tmp_path / "log", program=PROGRAM) as job:
        job.finish()
    said = (tmp_path / "log").read_text()
    assert "steps: a node is being taken away" in said and "continuing" in said, said
    assert [step for step, _ in steps_logged(tmp_path)] == list(range(12))
