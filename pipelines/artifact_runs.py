"""MLflow runs of the stages that can do without (`prepare`, `fit_label_pca`, `doctor`): only where a store is named."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # takes seconds to import, which a job without MLflow need not wait for
    from pipelines.tracking import TrackedRun

TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"


@dataclass(frozen=True, kw_only=True, slots=True)
class ArtifactRun:
    """What the run of such a stage is told at its start.

    Attributes:
        tracking_uri: of the store; None: `MLFLOW_TRACKING_URI`, and without that there is no run.
        experiment: of MLflow.
        job: that has the run.
        output: URI of the folder that is written.
        parameters: JSON values.
        work: JSON values that decide the content.
    """

    tracking_uri: str | None
    experiment: str
    job: Literal["prepare", "fit_label_pca", "doctor"]
    output: str
    parameters: Mapping[str, Any]
    work: Mapping[str, Any]

    @contextlib.contextmanager
    def opened(self, *, finished_digest: str = "") -> Iterator["TrackedRun | None"]:
        """The run, for the length of the work; None without a store.

        Args:
            finished_digest: of the folder, where it was finished before; then None too, unless no run knows it.

        Raises:
            ValueError: MLflow does not answer.
        """
        uri = self.tracking_uri or os.environ.get(TRACKING_VARIABLE)
        if not uri:
            yield None
            return
        from pipelines import tracking

        tracking.connect(uri)
        tags = {"prepare": tracking.DATASET_DIGEST_TAG, "fit_label_pca": tracking.LABEL_PCA_DIGEST_TAG}
        known = tracking.find_runs_by_tag(tags[self.job], finished_digest, job=self.job) if finished_digest else []
        if known:
            tracking.settle(known[0].run_id)
            yield None
            return
        with tracking.tracked_run(
            experiment=self.experiment,
            name=f"{self.job} {self.output.rstrip('/').rpartition('/')[2]}",
            job=self.job,
            parameters={"output": self.output, **self.parameters},
            tags={},
            work={"output": self.output, **self.work},
        ) as run:
            yield run
