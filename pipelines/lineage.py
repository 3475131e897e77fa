"""Where masks come from, and where data went, by the tags of MLflow's runs; `tracking.connect` first.

    tables, run -> models -> versions, training -> label PCA, dataset -> the jobs that made them     `origins_of_run`
    dataset -> label PCAs, trainings -> models -> versions, evaluations, nights -> tables, snapshots  `uses_of_dataset`

Each step is a digest: of a model folder, of a label PCA, of a prepared dataset. So a copy is its original, and what was
made anew from other data is not. Runs of versions that did not write a tag are not found by it.
"""

from dataclasses import dataclass

from pipelines import tracking
from pipelines.tables.commits import read_settings
from pipelines.tracking import ModelVersion, RunRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Origins:
    """What a model was made of and by. Runs are newest first; none where a job had no MLflow store.

    Attributes:
        model_digest: of its folder.
        versions: registered versions that hold it.
        trainings: runs of `train` that ended with it.
        label_pca_digest, dataset_digest: as its training says; "" for none, or without a training.
        label_pca_fits: runs of `fit_label_pca` that ended with that label PCA.
        preparations: runs of `prepare` that ended with that dataset.
    """

    model_digest: str
    versions: tuple[ModelVersion, ...]
    trainings: tuple[RunRecord, ...]
    label_pca_digest: str
    dataset_digest: str
    label_pca_fits: tuple[RunRecord, ...]
    preparations: tuple[RunRecord, ...]


def origins_of_model(model_digest: str) -> Origins:
    """Follow a model folder's digest back to the preparation of its data."""
    trainings = _runs(tracking.MODEL_DIGEST_TAG, model_digest, job="train")
    tags = trainings[0].tags if trainings else {}
    label_pca = tags.get(tracking.LABEL_PCA_DIGEST_TAG, "")
    dataset = tags.get(tracking.DATASET_DIGEST_TAG, "")
    return Origins(
        model_digest=model_digest,
        versions=tuple(tracking.versions_of_model(model_digest)),
        trainings=trainings,
        label_pca_digest=label_pca,
        dataset_digest=dataset,
        label_pca_fits=_runs(tracking.LABEL_PCA_DIGEST_TAG, label_pca, job="fit_label_pca"),
        preparations=_runs(tracking.DATASET_DIGEST_TAG, dataset, job="prepare"),
    )


def origins_of_run(tables: str, run_id: str) -> tuple[Origins, ...]:
    """Follow the masks of one run of some tables back: the origins of each of its models.

    Args:
        tables: URI of the tables' folder.
        run_id: as in the tables' column, such as "000042"; a snapshot lists its runs.

    Raises:
        ValueError: the tables have no such run.
    """
    try:
        settings = read_settings(tables, run_id)
    except FileNotFoundError:
        raise ValueError(f"the tables {tables!r} have no run {run_id!r}; check both") from None
    members = [str(member["model_digest"]) for member in settings.ensemble] or [settings.model_digest]
    return tuple(origins_of_model(digest) for digest in members)


def nights_of_run(tables: str, run_id: str) -> tuple[RunRecord, ...]:
    """The MLflow runs of the nights that worked on one run of some tables, newest first."""
    found = _runs(tracking.TABLE_RUNS_TAG, f"%,{run_id},%", job="segment")
    return tuple(run for run in found if run.tags.get(tracking.TABLES_TAG) == tables)


@dataclass(frozen=True, kw_only=True, slots=True)
class Uses:
    """What was made of a dataset. Runs are newest first.

    Attributes:
        preparations: runs of `prepare` that ended with it.
        label_pca_fits: runs of `fit_label_pca` on it.
        trainings: on it.
        versions: registered versions of their models.
        evaluations: of their models, on any dataset.
        nights: runs of `segment` with their models; the tags `segpipe.tables`, `segpipe.table_runs` and
            `segpipe.snapshot` lead to the tables.
    """

    preparations: tuple[RunRecord, ...]
    label_pca_fits: tuple[RunRecord, ...]
    trainings: tuple[RunRecord, ...]
    versions: tuple[ModelVersion, ...]
    evaluations: tuple[RunRecord, ...]
    nights: tuple[RunRecord, ...]


def uses_of_dataset(dataset_digest: str) -> Uses:
    """Follow a prepared dataset's digest forward to the tables that models trained on it have filled."""
    trainings = _runs(tracking.DATASET_DIGEST_TAG, dataset_digest, job="train")
    models = dict.fromkeys(run.tags.get(tracking.MODEL_DIGEST_TAG, "") for run in trainings)
    digests = [digest for digest in models if digest]

    def by_models(job: str) -> tuple[RunRecord, ...]:
        found = [run for digest in digests for run in _runs(tracking.MEMBERS_TAG, f"%,{digest},%", job=job)]
        once = {run.run_id: run for run in found}  # an ensemble of two such models comes twice
        return tuple(sorted(once.values(), key=lambda run: -run.start_time))

    return Uses(
        preparations=_runs(tracking.DATASET_DIGEST_TAG, dataset_digest, job="prepare"),
        label_pca_fits=_runs(tracking.DATASET_DIGEST_TAG, dataset_digest, job="fit_label_pca"),
        trainings=trainings,
        versions=tuple(version for digest in digests for version in tracking.versions_of_model(digest)),
        evaluations=by_models("evaluate"),
        nights=by_models("segment"),
    )


def _runs(tag: str, value: str, *, job: str) -> tuple[RunRecord, ...]:
    return tuple(tracking.find_runs_by_tag(tag, value, job=job)) if value else ()
