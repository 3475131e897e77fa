"""Whether tables can take a model's results, asked before anything is started."""

import logging

from pipelines import storage
from pipelines.checkpoints import ModelCard
from pipelines.tables import commits

logger = logging.getLogger(__name__)


def check_tables(tables: str) -> None:
    """Refuse tables that cannot be written; warn where two jobs at once would not be safe.

    Raises:
        ValueError: this process cannot write there.
    """
    storage.check_writable(tables)
    if not commits.exclusive_create_works(tables):
        logger.warning(
            "the store of %s ignores conditional writes: run one segment job at a time over these tables", tables
        )


def check_class_table(tables: str, card: ModelCard, *, model: str) -> None:
    """Refuse tables that hold another class table than the model's.

    Raises:
        ValueError: they do; the message says where they differ.
    """
    known = _class_table(tables)
    if known is None or known == (card.class_names, card.palette):
        return
    names, palette = known
    what = "classes" if names != card.class_names else "colours"
    pairs = (
        zip(names, card.class_names, strict=False) if what == "classes" else zip(palette, card.palette, strict=False)
    )
    differences = (f"{index}: {a!r} there, {b!r} in the model" for index, (a, b) in enumerate(pairs) if a != b)
    detail = next(differences, f"{len(names)} there, {len(card.class_names)} in the model")
    raise ValueError(
        f"the tables {tables!r} and the model {model!r} have different {what} ({detail}); "
        "give --tables another place, or a model with the tables' class table"
    )


def _class_table(tables: str) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]] | None:
    """Names and palette of the newest run, or None for new tables."""
    run_ids = commits.run_ids(tables)
    snapshot = commits.newest_snapshot(tables)
    if not run_ids:
        return None
    if run_ids[-1] in snapshot.run_ids:
        return snapshot.class_names, snapshot.palette
    settings = commits.read_settings(tables, run_ids[-1])
    return settings.class_names, settings.palette
