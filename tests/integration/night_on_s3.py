"""From raw images to a second night, on S3 and three Ray nodes, while workers, nodes and drivers are killed.

    python -m tests.integration.night_on_s3              # every stage, each with a worker, a node and its driver killed
    python -m tests.integration.night_on_s3 --no-kills --fault-rate 0.1   # a tenth of all S3 requests fails

Each stage is the job that users start, in a process of its own. What it leaves must be what an undisturbed start left,
byte for byte or row for row. At the end nothing runs that this script started. `test_night_on_s3.py` runs it.
"""

import contextlib
import io
import json
import logging
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq
import tyro

from pipelines import fault_points, storage, tracking
from pipelines.cluster import SUBMITTED_JOB
from pipelines.exit_codes import DONE
from pipelines.fault_points import STAGE_POINTS
from pipelines.manifests import MANIFEST
from pipelines.object_store import ObjectStore
from pipelines.pictures import png_bytes
from pipelines.shards import open_dataset, read_part
from pipelines.tables import commits
from pipelines.tables.reader import read_table
from tests.pipelines.fault_proxy import FaultProxy, fault_proxy
from tests.pipelines.mlflow_servers import mlflow_server
from tests.pipelines.processes import descendants, kill, stopped_at
from tests.pipelines.ray_nodes import RayNodes, ray_nodes
from tests.pipelines.s3_servers import S3Server, moto_server, seaweedfs
from tests.pipelines.tiny_inputs import CLASS_NAMES, random_pairs

ROOT = Path(__file__).resolve().parents[2]
Victim = Literal["", "worker", "node", "driver"]
JOB_SECONDS = 420.0
POINTS = {**STAGE_POINTS, "segment": ("commits.staged", "commits.planned"), "train": ("train.step=6", "train.step=6")}
"""Where a worker, and where the driver, of a stage is killed; of a training the driver dies while a worker waits."""
WEBHOOK_SECRET = "T0-the-path-of-a-webhook-is-a-secret"
IMAGE_PX = (64, 96)
EPOCHS = 3
MODEL = [
    *("--epochs", str(EPOCHS), "--batch-size", "8", "--validate-every", "1", "--optim.warmup-steps", "1"),
    *("--augment.crop-height", "64", "--augment.crop-width", "64", "--shuffle-buffer", "16"),
    # Ours: a worker that needs no network of timm's starts in two thirds of the time.
    *("--model.backbone", "xception39", "--model.aspp-channels", "16", "--model.dupsample.num-components", "16"),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class NightOnS3Config:
    """What to do, and what to have fail."""

    kills: bool = True
    """Kill a worker, a node and the driver of each stage."""
    one_process: bool = False
    """Run the jobs one after the other in this process, which spares their starts; only without kills."""
    fault_rate: float = 0.0
    """Share of S3 requests that fail, once the raw data are there."""
    images: int = 40
    """Pairs to prepare; half as many are segmented."""
    server: Literal["seaweedfs", "moto"] = "seaweedfs"
    """S3 server."""
    mlflow: Literal["server", "sqlite"] = "server"
    """Where runs are tracked."""
    seed: int = 0
    """Of the faults."""


@dataclass
class Scene:
    """What runs, and what has been seen.

    Attributes:
        bucket: `s3://...`.
        tracking_uri: of MLflow.
        nodes, proxy: what is made to fail.
        scratch: local folder for logs and tokens.
        seconds: of each start of a job, by its name.
    """

    bucket: str
    tracking_uri: str
    nodes: RayNodes
    proxy: FaultProxy
    scratch: Path
    one_process: bool
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, stage: str, output: str, *arguments: str, victim: Victim = "") -> str:
        """Run a job to its end, over the death of a victim, if any; returns its closing line."""
        name = f"{stage} {output}"
        if self.one_process:
            return self._said(name, victim, *self._run_here(stage, arguments))
        point = POINTS[stage][victim == "driver"] if victim else ""
        token = self.scratch / f"token-{len(self.seconds)}"
        began = time.monotonic()
        with self._started(stage, arguments, name, fault=f"{point}@{token}" if victim else "") as (job, log):
            if victim:
                stopped = stopped_at(token, job, log, seconds=JOB_SECONDS)
                in_driver = victim == "driver" and stage != "train"
                assert (stopped == job.pid) == in_driver, f"{point} is not where it was thought to be"
                self._kill(victim, stopped, job)
            code = job.wait(timeout=JOB_SECONDS)
        if victim == "driver":
            assert code < 0
            with self._started(stage, arguments, f"{name}, again", fault="") as (job, log):
                code = job.wait(timeout=JOB_SECONDS)
        return self._said(name, victim, code, log.read_text(), time.monotonic() - began)

    def _said(self, name: str, victim: Victim, code: object, text: str, seconds: float) -> str:
        """The closing line of a job, which is shown with its time."""
        self.seconds[f"{name} {len(self.seconds)}"] = seconds
        assert code == DONE, f"{name} ended with {code}:\n{text[-5000:]}"
        line = text.strip().splitlines()[-1]
        print(f"{seconds:6.1f} s  {name}{f', {victim} killed' if victim else ''}: {line}", flush=True)
        return line

    def _run_here(self, stage: str, arguments: tuple[str, ...]) -> tuple[object, str, float]:
        began, argv, output, code = time.monotonic(), sys.argv, io.StringIO(), None
        sys.argv = [f"jobs/{stage}.py", *arguments]
        try:
            with contextlib.redirect_stdout(output):
                runpy.run_path(str(ROOT / "jobs" / f"{stage}.py"), run_name="__main__")
        except SystemExit as end:
            code = end.code
        finally:
            sys.argv = argv
        return code, output.getvalue(), time.monotonic() - began

    def _kill(self, victim: Victim, pid: int, job: "subprocess.Popen[bytes]") -> None:
        if victim == "worker":
            kill([pid])
        elif victim == "node":
            self.nodes.kill_node_of(pid)
            self.nodes.add_node()
        else:
            job.kill()

    @contextlib.contextmanager
    def _started(
        self, stage: str, arguments: tuple[str, ...], name: str, *, fault: str
    ) -> "Iterator[tuple[subprocess.Popen[bytes], Path]]":
        log = self.scratch / f"{name.replace(' ', '-').replace(',', '')}.log"
        environment = os.environ | {"RAY_ADDRESS": self.nodes.address}
        if fault:  # to the driver, and as `ray job submit` does to its workers
            environment |= {
                fault_points.VARIABLE: fault,
                SUBMITTED_JOB: json.dumps({"runtime_env": {"env_vars": {fault_points.VARIABLE: fault}}}),
            }
        command = [sys.executable, str(ROOT / "jobs" / f"{stage}.py"), *arguments]
        with log.open("wb") as file:
            job = subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=self.scratch)
        try:
            yield job, log
        finally:
            if job.poll() is None:
                kill([job.pid, *descendants(job.pid)])
                job.wait()


def main(config: NightOnS3Config) -> None:
    """Run the whole of it; an AssertionError where anything is not as it should be."""
    with _scene(config) as scene:
        _upload_pairs(scene.bucket, config.images)
        scene.proxy.fail(rate=config.fault_rate)
        victims: tuple[Victim, ...] = ("", "worker", "node", "driver") if config.kills else ("",)
        _prepare(scene, victims)
        _fit_label_pca(scene, victims)
        _train(scene, victims)
        _evaluate(scene, victims)
        _segment(scene, victims, num_images=config.images // 2)
        _check_runs(scene, victims)
        _check_no_secret(scene)
        faults, total = scene.proxy.num_faults, scene.proxy.counts.total()
        print(f"S3: {total} requests, {faults} of them failed; {sum(scene.seconds.values()):.0f} s in jobs", flush=True)


@contextlib.contextmanager
def _scene(config: NightOnS3Config) -> Iterator[Scene]:
    """Server, proxy and nodes; whatever happens, they end."""
    scratch = Path(tempfile.mkdtemp(prefix="night-on-s3-"))
    servers = {"seaweedfs": seaweedfs, "moto": moto_server}
    before = dict(os.environ)
    try:
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(servers[config.server]())
            proxy = stack.enter_context(fault_proxy(server.endpoint, seed=config.seed))
            _use(server, proxy)
            bucket = f"s3://{server.make_bucket()}"
            uri = f"sqlite:///{scratch / 'mlflow.db'}"
            if config.mlflow == "server":
                uri = stack.enter_context(mlflow_server(scratch / "mlflow")).uri
            nodes = stack.enter_context(ray_nodes(3, num_cpus=3))
            if config.one_process:
                import ray

                ray.init(address=nodes.address, log_to_driver=False, logging_level=logging.ERROR)
                stack.callback(ray.shutdown)
            yield Scene(bucket, uri, nodes, proxy, scratch, config.one_process)
    finally:
        os.environ.clear()
        os.environ.update(before)
        ObjectStore.clear_instance_cache()
        shutil.rmtree(scratch, ignore_errors=True)


def _use(server: S3Server, proxy: FaultProxy) -> None:
    os.environ.update(server.environment(proxy.endpoint))
    os.environ.update(PYTHONPATH=str(ROOT), RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
    os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", RAY_memory_monitor_refresh_ms="0", OMP_NUM_THREADS="1")
    ObjectStore.clear_instance_cache()


def _upload_pairs(bucket: str, count: int) -> None:
    for number, (pixels_HW3, labels_HW) in enumerate(random_pairs(count, seed=1, sizes=(IMAGE_PX,))):
        split = "val" if number % 5 == 0 else "train"
        storage.write_atomic(f"{bucket}/raw/images/{split}/{number:03d}.png", png_bytes(pixels_HW3))
        storage.write_atomic(f"{bucket}/raw/labels/{split}/{number:03d}.png", png_bytes(labels_HW))
    classes = json.dumps({"names": list(CLASS_NAMES), "ignore": [255]})
    storage.write_atomic(f"{bucket}/raw/classes.json", classes.encode())


def _digests(folder: str) -> dict[str, str]:
    """Content of every file below a folder."""
    return {uri.removeprefix(folder): storage.sha256(storage.read_bytes(uri)) for uri in storage.list_files(folder)}


def _to_the_same_bytes(scene: Scene, victims: tuple[Victim, ...], stage: str, name: str, *arguments: str) -> None:
    """Run a stage into a folder of its own for each victim, the undisturbed one first, and compare what it leaves."""
    for victim in victims:
        output = f"{scene.bucket}/{name}{victim}"
        scene.run(
            stage,
            f"{name}{victim}",
            *(*arguments, "--output", output, "--workers", "2", "--tracking-uri", scene.tracking_uri),
            victim=victim,
        )
        assert _digests(output) == _digests(f"{scene.bucket}/{name}"), f"{victim} killed: other bytes"


def _prepare(scene: Scene, victims: tuple[Victim, ...]) -> None:
    raw = f"{scene.bucket}/raw"
    source = ("--images", f"{raw}/images", "--labels", f"{raw}/labels", "--classes", f"{raw}/classes.json")
    _to_the_same_bytes(scene, victims, "prepare", "data", "folder", *source, "--images-per-part", "4")
    dataset = open_dataset(f"{scene.bucket}/data")
    rows = Counter(
        image_id
        for split in dataset.splits.values()
        for part in split.parts
        for image_id in read_part(dataset, part, columns=("image_id",))["image_id"].to_pylist()
    )
    assert set(rows.values()) == {1} and len(rows) == sum(split.num_images for split in dataset.splits.values())


def _fit_label_pca(scene: Scene, victims: tuple[Victim, ...]) -> None:
    sizes = ("--block-side", "32", "--num-components", "16")
    _to_the_same_bytes(scene, victims, "fit_label_pca", "pca", "--data", f"{scene.bucket}/data", *sizes)


def _train(scene: Scene, victims: tuple[Victim, ...]) -> None:
    losses = []
    for victim in victims:
        name = f"street{victim}"
        scene.run(
            "train",
            name,
            *("scenes.dupsampling_mobilenetv3", *MODEL, "--data", f"{scene.bucket}/data"),
            *("--label-pca", f"{scene.bucket}/pca", "--output", f"{scene.bucket}/runs", "--name", name),
            *("--workers", "2", "--checkpoint-steps", "2", "--tracking-uri", scene.tracking_uri),
            *("--register", name),
            victim=victim,
        )
        result = storage.read_json(f"{scene.bucket}/runs/{name}/result.json")
        history = tracking.attach(scene.tracking_uri, result["run_id"]).history("train/loss")
        assert [step for step, _ in history] == list(range(EPOCHS)), history
        losses.append(history[-1][1])
    assert all(abs(loss - losses[0]) <= 1e-3 * losses[0] for loss in losses), losses


def _check_no_secret(scene: Scene) -> None:
    """Nowhere in what was written: objects, rows of tables, logs of jobs and of Ray, all that MLflow keeps."""
    secrets = [os.environ["AWS_SECRET_ACCESS_KEY"].encode(), WEBHOOK_SECRET.encode()]
    contents = {uri: storage.read_bytes(uri) for uri in storage.list_files(scene.bucket)}
    for folder in (scene.scratch, scene.nodes.logs):
        contents |= {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for name, data in contents.items():
        rows = pq.read_table(io.BytesIO(data)).to_pylist() if name.endswith(".parquet") else ""
        found = [secret for secret in secrets if secret in data or secret in repr(rows).encode()]
        assert not found, f"{name} holds {found}"
    assert len(contents) > 100


def _check_runs(scene: Scene, victims: tuple[Victim, ...]) -> None:
    """One run for each piece of work, whatever died in it, and all of them finished."""
    tracking.connect(scene.tracking_uri)
    runs = tracking.find_runs(experiment="segpipe", job=None)
    assert {run.status for run in runs} == {"FINISHED"}, [(run.name, run.status) for run in runs]
    works = Counter(run.tags["segpipe.job"] for run in runs)
    once = len(victims)
    jobs = ("prepare", "fit_label_pca", "train", "evaluate", "drift")
    assert works == {**dict.fromkeys(jobs, once), "segment": 3 * once}, works
    digest = open_dataset(f"{scene.bucket}/data").digest
    for job in jobs[:4]:
        assert len(tracking.find_runs_by_tag(tracking.DATASET_DIGEST_TAG, digest, job=job)) == once, job


def _evaluate(scene: Scene, victims: tuple[Victim, ...]) -> None:
    found = []
    for victim in victims:
        output = f"{scene.bucket}/scores{victim}"
        scene.run(
            "evaluate",
            f"scores{victim}",
            *("--model", "models:/street@challenger", "--data", f"{scene.bucket}/data", "--output", output),
            *("--workers", "2", "--threads", "1", "--tracking-uri", scene.tracking_uri),
            victim=victim,
        )
        found.append(storage.read_json(f"{output}/{MANIFEST}")["scores"])
    assert all(each == found[0] for each in found), found


def _segment(scene: Scene, victims: tuple[Victim, ...], *, num_images: int) -> None:
    images = [png_bytes(pixels_HW3) for pixels_HW3, _ in random_pairs(num_images + 3, seed=2, sizes=(IMAGE_PX,))]
    for victim in victims:
        cams = f"{scene.bucket}/cams{victim}"
        for number in range(num_images):
            storage.write_atomic(f"{cams}/{number:03d}.png", images[number])
        storage.write_atomic(f"{cams}/broken.png", b"\x89PNG no more")
        _night(scene, victim, killed=victim)
        expected = Counter([*(f"{cams}/{number:03d}.png" for number in range(num_images)), f"{cams}/broken.png"])
        assert _rows(scene, victim) == expected
        storage.write_atomic(f"{cams}/{0:03d}.png", images[-1])  # changed
        storage.write_atomic(f"{cams}/new.png", images[-2])
        storage.remove_file(f"{cams}/{1:03d}.png")
        line = _night(scene, victim, workers=1)
        assert line.startswith("segmented 2 images") and "1 marked as deleted" in line, line
        expected.update([f"{cams}/{0:03d}.png", f"{cams}/new.png"])
        assert _rows(scene, victim) == expected
        assert _night(scene, victim).startswith("nothing new")


def _night(scene: Scene, tables: str, *, killed: Victim = "", workers: int = 2) -> str:
    return scene.run(
        "segment",
        f"tables{tables}",
        *("--images", f"{scene.bucket}/cams{tables}", "--model", "models:/street@challenger"),
        *("--tables", f"{scene.bucket}/tables{tables}", "--images-per-shard", "2"),
        *("--workers", str(workers), "--threads", "1"),
        *(
            "--tracking-uri",
            scene.tracking_uri,
            "--webhook",
            f"{scene.proxy.endpoint}/hooks/{WEBHOOK_SECRET}",
        ),
        victim=killed,
    )


def _rows(scene: Scene, tables: str) -> Counter[str]:
    """How often each image stands in predictions or failures; every prediction has its mask, every file is listed."""
    uri = f"{scene.bucket}/tables{tables}"
    predictions, masks, failures = (read_table(uri, name) for name in ("predictions", "masks", "failures"))
    assert Counter(predictions["work_id"].to_pylist()) == Counter(masks["work_id"].to_pylist())
    live = {file["path"] for file in commits.newest_snapshot(uri).files}
    names = ("predictions", "masks", "failures", "deletions", "metrics", "comparisons")
    lying = {path.removeprefix(f"{uri}/") for name in names for path in storage.list_files(f"{uri}/{name}")}
    assert live == lying, live ^ lying
    return Counter([*predictions["uri"].to_pylist(), *failures["uri"].to_pylist()])


if __name__ == "__main__":
    main(tyro.cli(NightOnS3Config, description=__doc__))
