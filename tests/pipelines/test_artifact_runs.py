"""A stage that needs no MLflow has a run where a store is named, and costs nothing where none is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import tracking
from pipelines.artifact_runs import TRACKING_VARIABLE, ArtifactRun

DIGEST = "a" * 64


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> ArtifactRun:
    return ArtifactRun(
        tracking_uri=f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/store.db",
        experiment="artifacts",
        job="prepare",
        output="s3://lake/camvid",
        parameters={"config": {"root": "raw"}, "workers": 2},
        work={"plan": "p"},
    )


def test_without_a_store_there_is_no_run_and_mlflow_is_not_even_imported() -> None:
    program = """
import sys
from pipelines.artifact_runs import ArtifactRun
stage = ArtifactRun(
    tracking_uri=None, experiment="x", job="prepare", output="data", parameters={}, work={}
)
with stage.opened() as run:
    assert run is None
assert "mlflow" not in sys.modules and "torch" not in sys.modules
"""
    environment = {name: value for name, value in os.environ.items() if name != TRACKING_VARIABLE}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, cwd=Path(__file__).parents[2])


def test_a_stage_that_failed_is_continued_in_its_run(stage: ArtifactRun) -> None:
    with pytest.raises(ValueError, match="too many failures"), stage.opened() as first:
        raise ValueError("too many failures")
    assert tracking.find_runs(experiment="artifacts", job="prepare")[0].status == "FAILED"
    with stage.opened() as second:
        assert first is not None and second is not None and second.run_id == first.run_id
        second.set_tags({tracking.DATASET_DIGEST_TAG: DIGEST})
    (record,) = tracking.find_runs(experiment="artifacts", job="prepare")
    assert (record.name, record.status) == ("prepare camvid", "FINISHED")
    assert record.parameters == {"output": "s3://lake/camvid", "config.root": "raw", "workers": "2"}


def test_a_folder_that_was_finished_before_gets_a_run_unless_one_knows_it(
    stage: ArtifactRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stage.tracking_uri is not None
    monkeypatch.setenv(TRACKING_VARIABLE, stage.tracking_uri)
    later = ArtifactRun(
        tracking_uri=None, experiment="later", job="fit_label_pca", output="pca", parameters={}, work={}
    )
    with later.opened(finished_digest=DIGEST) as run:
        assert run is not None
        run.set_tags({tracking.LABEL_PCA_DIGEST_TAG: DIGEST})
    with later.opened(finished_digest=DIGEST) as again:
        assert again is None
    assert len(tracking.find_runs(experiment="later", job=None)) == 1
