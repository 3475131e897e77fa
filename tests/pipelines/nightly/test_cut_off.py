"""A node loses its network, and its worker does not die with it: what it does late changes nothing."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines import fault_points, storage
from pipelines.cluster import SUBMITTED_JOB
from pipelines.exit_codes import DONE
from pipelines.nightly.config import SegmentConfig
from pipelines.tables import commits
from tests.pipelines.processes import command_of, descendants, kill, stopped_at
from tests.pipelines.ray_namespaces import needs_namespaces, ray_namespaces
from tests.pipelines.segment_jobs import REPOSITORY, check_every_image_once, write_images
from tests.pipelines.tiny_inputs import write_model

JOB_SECONDS = 300


@pytest.mark.slow
@needs_namespaces
def test_a_worker_that_was_cut_off_commits_nothing_that_another_has_done(tmp_path: Path) -> None:
    """Images and tables lie on storage that all nodes share, as on NFS."""
    (tmp_path / "images").mkdir()
    names = write_images(str(tmp_path / "images"), 8)
    config = SegmentConfig(
        images=str(tmp_path / "images"), model=write_model(tmp_path / "street"), tables=str(tmp_path / "tables")
    )
    token, log = tmp_path / "token", tmp_path / "job.log"
    fault = {fault_points.VARIABLE: f"commits.staged@{token}"}
    environment = {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(REPOSITORY / "jobs" / "segment.py"), "--workers", "2", "--threads", "1", "--no-page"]
    command += ["--images", config.images, "--model", config.model, "--tables", config.tables]
    command += ["--images-per-shard", "1", "--tracking-uri", f"sqlite:///{tmp_path / 'mlflow.db'}"]
    with ray_namespaces(2, num_cpus=3, environment=environment) as spaces, log.open("wb") as output:
        settings = {"RAY_ADDRESS": spaces.address, SUBMITTED_JOB: json.dumps({"runtime_env": {"env_vars": fault}})}
        job = subprocess.Popen(
            spaces.inside(0, command), env=os.environ | environment | settings, stdout=output, stderr=output
        )
        try:
            zombie = stopped_at(token, job, log, seconds=JOB_SECONDS)
            node = spaces.node_of(zombie)
            staged = [uri for uri in storage.list_files(config.tables) if "_staging/" in uri]
            assert staged and "ShardSegmenter" in command_of(zombie)
            spaces.cut_off(node)
            assert job.wait(timeout=JOB_SECONDS) == DONE, log.read_text()[-5000:]
            check_every_image_once(config, names)
            before = {uri: storage.read_bytes(uri) for uri in storage.list_files(config.tables)}
            assert command_of(zombie), "the worker died with its node; nothing was shown"
            token.with_name(f"{token.name}.released").touch()
            _wait_until_gone(staged, config.tables)
            spaces.join_again(node)
        finally:
            kill([job.pid, *descendants(job.pid)])
            job.wait()
    after = {uri: storage.read_bytes(uri) for uri in storage.list_files(config.tables)}
    assert {uri: data for uri, data in before.items() if "_staging/" not in uri} == after
    check_every_image_once(config, names)
    assert commits.newest_snapshot(config.tables).number == 1


def _wait_until_gone(staged: list[str], tables: str) -> None:
    """The late worker finds its shard committed, and discards what it had staged."""
    deadline = time.monotonic() + 60
    while set(staged) & set(storage.list_files(tables)):
        assert time.monotonic() < deadline, "the late worker's files are still there"
        time.sleep(0.1)
