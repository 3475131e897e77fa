"""Make the challenger the champion, with the evidence in the model version's description.

Two kinds of evidence are looked for, and shown before anything moves:

- `comparisons` of nights in which the challenger ran beside this champion (`segment --challenger`): how much would
  change, how sure each is, how fast;
- `evaluate` runs of both in MLflow on one split of one dataset: who is right more often.

The champion before keeps the alias `previous`, so that `promote NAME --source previous` takes the change back.
"""

import math
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa

from pipelines import storage, tracking
from pipelines.nightly.challenge import EVIDENCE_COLUMNS, Evidence, gather
from pipelines.tables.commits import newest_snapshot
from pipelines.tables.reader import read_batches

PREVIOUS = "previous"


@dataclass(frozen=True, kw_only=True, slots=True)
class PromoteConfig:
    """Which alias moves, and on what evidence."""

    name: str
    """Registered model, as given to `train --register`."""
    tables: str = ""
    """Folder or URI of the tables whose nights were compared (`segment --challenger`)."""
    source: str = "challenger"
    """Alias of the version that is promoted."""
    target: str = "champion"
    """Alias that moves to it."""
    min_images: int = 100
    """Fewest images that must have been compared."""
    force: bool = False
    """Promote without enough evidence, or though the evaluations speak against it; the description says so."""
    dry_run: bool = False
    """Show the evidence and move nothing."""
    experiment: str = "segpipe"
    """MLflow experiment of the evaluations."""
    tracking_uri: str | None = None
    """MLflow server or SQLite file; default MLFLOW_TRACKING_URI, or sqlite:///mlflow.db here."""

    def __post_init__(self) -> None:
        if self.source == self.target:
            raise ValueError(f"--source and --target are both {self.source!r}; give two aliases")
        if self.min_images < 0:
            raise ValueError(f"--min-images is {self.min_images}; give 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluations:
    """The newest `evaluate` run of each model on one dataset and split; mean IoU as fractions of 1.

    Attributes:
        data: digest of the dataset, and the split.
        champion, challenger: mean IoU.
    """

    data: str
    champion: float
    challenger: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PromoteResult:
    """What was found and moved.

    Attributes:
        name, version, target: the alias `target` of model `name` points at `version` now.
        moved: False in a dry run, and where it pointed there before.
        report: Markdown, as in the version's description.
    """

    name: str
    version: str
    target: str
    moved: bool
    report: str

    @property
    def closing_line(self) -> str:
        what = "now is" if self.moved else "was not moved; it would be"
        return f"{self.report}\n\nmodels:/{self.name}@{self.target} {what} version {self.version}"


def promote(config: PromoteConfig) -> PromoteResult:
    """Move the alias, if the evidence is there.

    Raises:
        ValueError: there is no version to promote; too few images were compared, or the evaluations say that the
            champion is better, and `force` is off.
    """
    tracking.connect(config.tracking_uri)
    challenger = tracking.version_of_alias(config.name, config.source)
    if challenger is None:
        raise ValueError(
            f"MLflow has no model {config.name!r} with the alias {config.source!r}; register one with "
            "`train --register`, or name another alias with --source"
        )
    champion = tracking.version_of_alias(config.name, config.target)
    if champion is not None and champion.version == challenger.version:
        report = f"Version {challenger.version} has the alias {config.target} already."
        return PromoteResult(
            name=config.name, version=challenger.version, target=config.target, moved=False, report=report
        )
    evidence = evaluations = None
    problems: list[str] = []
    if champion is not None:  # else there is nothing to be better than
        evidence = nightly_evidence(config.tables, champion.model_digest, challenger.model_digest)
        evaluations = find_evaluations(config.experiment, champion.model_digest, challenger.model_digest)
        problems = _problems(config, evidence, evaluations)
    if problems and not config.force:
        raise ValueError("; ".join(problems) + "; or give --force")
    report = _report(config, champion, challenger, evidence, evaluations, problems)
    if not config.dry_run:
        text = f"{challenger.description}\n\n{report}".strip()
        tracking.describe_version(config.name, challenger.version, text)  # first: an alias never moves unexplained
        if champion is not None:
            tracking.move_alias(config.name, PREVIOUS, champion.version)
        tracking.move_alias(config.name, config.target, challenger.version)
    return PromoteResult(
        name=config.name, version=challenger.version, target=config.target, moved=not config.dry_run, report=report
    )


def nightly_evidence(tables: str, champion_digest: str, challenger_digest: str) -> Evidence | None:
    """From the table `comparisons`, over all nights; None without tables."""
    if not tables:
        return None
    if not newest_snapshot(storage.absolute(tables)).number:
        raise ValueError(f"there are no published tables in {tables!r}; check --tables")
    batches = read_batches(storage.absolute(tables), "comparisons", columns=EVIDENCE_COLUMNS)
    parts = (pa.Table.from_batches([batch]) for batch in batches)
    return gather(parts, champion_digest=champion_digest, challenger_digest=challenger_digest)


def find_evaluations(experiment: str, champion_digest: str, challenger_digest: str) -> Evaluations | None:
    """Scores of both on the same data, the newest pair; None where MLflow holds no such pair."""
    scores: dict[tuple[str, str], float] = {}
    data_of_challenger: list[str] = []
    try:
        runs = tracking.find_runs(experiment=experiment, job="evaluate")
    except ValueError:  # no such experiment: nothing was ever evaluated
        return None
    for run in runs:  # newest first
        model = run.tags.get(tracking.MODEL_DIGEST_TAG, "")
        value = run.metrics.get("mean_iou")
        if run.status != "FINISHED" or value is None or math.isnan(value):
            continue
        data = f"{run.tags.get(tracking.DATASET_DIGEST_TAG, '')[:12]} {run.tags.get('segpipe.split', '')}".strip()
        scores.setdefault((model, data), value)
        if model == challenger_digest:
            data_of_challenger.append(data)
    for data in data_of_challenger:
        if (champion_digest, data) in scores:
            return Evaluations(
                data=data, champion=scores[champion_digest, data], challenger=scores[challenger_digest, data]
            )
    return None


def _problems(config: PromoteConfig, evidence: Evidence | None, evaluations: Evaluations | None) -> list[str]:
    """Why the alias should not move."""
    problems = []
    compared = evidence.num_images if evidence else 0
    if compared < config.min_images:
        problems.append(
            f"{compared} images were compared with the present {config.target}, fewer than --min-images "
            f"{config.min_images}; run `segment --challenger models:/{config.name}@{config.source}` for some nights "
            "and give --tables"
        )
    if evaluations and evaluations.challenger < evaluations.champion:
        problems.append(
            f"on {evaluations.data} the {config.source} has {100 * evaluations.challenger:.2f} % mIoU and the "
            f"{config.target} {100 * evaluations.champion:.2f} %"
        )
    return problems


def _report(
    config: PromoteConfig,
    champion: tracking.ModelVersion | None,
    challenger: tracking.ModelVersion,
    evidence: Evidence | None,
    evaluations: Evaluations | None,
    problems: list[str],
) -> str:
    """The evidence as Markdown."""
    before = f"after version {champion.version}" if champion else "the first one"
    lines = [f"**{config.target} since {datetime.now(UTC):%Y-%m-%d}**, {before}."]
    if evidence and evidence.num_images:
        lines += [
            "",
            "| on compared images | before | this version |",
            "| --- | --- | --- |",
            f"| mean confidence | {evidence.champion_confidence:.4f} | {evidence.challenger_confidence:.4f} |",
            f"| ms an image | {evidence.champion_ms:.1f} | {evidence.challenger_ms:.1f} |",
            "",
            f"Agreement of the two on {evidence.num_images} images of {len(evidence.run_ids)} night(s): "
            f"{100 * evidence.agreement:.2f} % of pixels, mIoU {100 * evidence.mean_iou:.2f} %; "
            f"{evidence.num_errors} image(s) failed.",
        ]
    if evaluations:
        lines += [
            "",
            f"mIoU on {evaluations.data}: {100 * evaluations.champion:.2f} % before, "
            f"{100 * evaluations.challenger:.2f} % with this version.",
        ]
    lines += [f"\nForced: {problem}." for problem in problems]
    return "\n".join(lines)
