"""What a run logged step by step, of which `RunRecord` has the last values only."""

from collections.abc import Iterable

from mlflow import MlflowClient

from pipelines.tracking.runs import metric_name


def metric_histories(run_id: str, metrics: Iterable[str]) -> dict[str, list[tuple[int, float]]]:
    """The (step, value) pairs of some metrics of a run, by step; of a step logged twice the last value.

    A metric that the run never logged has no pairs.
    """
    client = MlflowClient()
    found: dict[str, list[tuple[int, float]]] = {}
    for metric in metrics:
        points = client.get_metric_history(run_id, metric_name(metric))
        by_step = {point.step: point.value for point in sorted(points, key=lambda point: (point.step, point.timestamp))}
        found[metric] = list(by_step.items())
    return found
