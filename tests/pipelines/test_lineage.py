"""From masks to the raw data's preparation and all the way back, each step by a digest."""

from pathlib import Path

import pytest

from pipelines import tracking
from pipelines.checkpoints import read_card
from pipelines.datasets.camvid import CamVidConfig
from pipelines.fit_label_pca import FitLabelPCAConfig, fit_label_pca
from pipelines.lineage import nights_of_run, origins_of_model, origins_of_run, uses_of_dataset
from pipelines.manifests import code_commit
from pipelines.nightly.tracked_night import note_table_runs
from pipelines.prepare import PrepareConfig, prepare
from pipelines.shards import open_dataset
from pipelines.tables import commits
from tests.data.camvid.make import make_camvid
from tests.pipelines.night_tables import make_run
from tests.pipelines.tiny_inputs import write_model


def record(job: str, tags: dict[str, str], *, table_runs: tuple[str, ...] = ()) -> str:
    """A finished run of a stage, with the tags that it would write."""
    with tracking.tracked_run(experiment=job, name=job, job=job, parameters={}, tags=tags) as run:
        if table_runs:
            note_table_runs(run, table_runs)
    return run.run_id


@pytest.mark.usefixtures("ray_session")
def test_masks_lead_to_the_raw_data_and_back(tmp_path: Path) -> None:
    """prepare and fit_label_pca as they are; of the others, whose runs their own tests check, the tags."""
    uri = tracking.connect(f"sqlite:///{tmp_path}/mlflow.db")
    raw = make_camvid(tmp_path / "raw", num_train=3, num_val=2)
    data, label_pca = str(tmp_path / "data"), str(tmp_path / "pca")
    prepared = PrepareConfig(dataset=CamVidConfig(root=str(raw)), output=data, tracking_uri=uri)
    prepare(prepared)
    fit = FitLabelPCAConfig(data=data, output=label_pca, block_side=4, num_components=6, tracking_uri=uri)
    fitted = fit_label_pca(fit).folder.digest
    dataset = open_dataset(data).digest
    model = write_model(tmp_path / "model")
    model_digest = read_card(model)[1]
    other = "f" * 64
    trained = record(
        "train",
        {
            tracking.DATASET_DIGEST_TAG: dataset,
            tracking.LABEL_PCA_DIGEST_TAG: fitted,
            tracking.MODEL_DIGEST_TAG: model_digest,
        },
    )
    tracking.register_model(model, name="street", alias="champion", run_id=trained)
    evaluated = record("evaluate", {tracking.MEMBERS_TAG: f",{model_digest},"})
    tables = str(tmp_path / "tables")
    for run in (make_run("000001", [["a"]], model=model_digest), make_run("000002", [["b"]], model=other)):
        assert commits.create_run(tables, run)
    night_tags = {tracking.TABLES_TAG: tables, tracking.MEMBERS_TAG: f",{model_digest},"}
    night = record("segment", night_tags, table_runs=("000001",))
    second = record("segment", night_tags | {tracking.MEMBERS_TAG: f",{other},{model_digest},"}, table_runs=("000002",))
    record("segment", night_tags | {tracking.TABLES_TAG: "others", tracking.MEMBERS_TAG: f",{other},"})

    (origins,) = origins_of_run(tables, "000001")
    assert [each.run_id for each in origins.trainings] == [trained]
    assert [(each.name, each.version, each.run_id) for each in origins.versions] == [("street", "1", trained)]
    assert (origins.label_pca_digest, origins.dataset_digest) == (fitted, dataset)
    (fit_run,), (prepare_run,) = origins.label_pca_fits, origins.preparations
    assert fit_run.parameters["output"] == label_pca and fit_run.metrics["captured_energy"] > 0
    assert fit_run.metrics["recovery/train/basis/mean_iou"] > 0
    assert prepare_run.parameters["output"] == data and prepare_run.parameters["config.root"] == str(raw)
    assert {name: prepare_run.metrics[name] for name in ("num_images/train", "num_images/val", "num_failures")} == {
        "num_images/train": 3,
        "num_images/val": 2,
        "num_failures": 0,
    }
    for run_record in (*origins.trainings, fit_run, prepare_run):
        assert run_record.tags[tracking.CODE_TAG] == code_commit()
    assert [each.run_id for each in nights_of_run(tables, "000001")] == [night]

    uses = uses_of_dataset(dataset)
    assert (uses.preparations, uses.label_pca_fits, uses.trainings) == ((prepare_run,), (fit_run,), origins.trainings)
    assert uses.versions == origins.versions
    assert [each.run_id for each in uses.evaluations] == [evaluated]
    assert [each.run_id for each in uses.nights] == [second, night]

    prepare(prepared)  # finished folders have their run already
    fit_label_pca(fit)
    assert uses_of_dataset(dataset) == uses

    unknown = origins_of_model(other)
    assert (unknown.trainings, unknown.versions, unknown.preparations) == ((), (), ())
    with pytest.raises(ValueError, match="have no run '000009'"):
        origins_of_run(tables, "000009")
