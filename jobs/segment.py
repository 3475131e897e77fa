r"""Segment a folder or bucket of images into Parquet tables.

    python jobs/segment.py --images photos --model runs/street/model --tables tables/street
    ray job submit --working-dir . -- python jobs/segment.py --images s3://cams/2026-11-20/ \
        --model models:/street@champion --tables s3://lake/street --workers 8 --use-gpu

Reads: every file below --images (hidden and .part files do not count) or those that --manifest names, and a model
(folder URI or models:/name@alias). `--plan` says what there is to do, how long it will take and what it will cost.
Writes: predictions, masks, failures and deletions (Parquet), snapshots/<n>.json, runs/<run>/page.html; and an MLflow
run. The same command again continues where it was interrupted, and segments only what is new or changed.
Takes: start-up of 15 seconds, then what the network takes (150 photos of 0.3 to 1 megapixel on two cores: one minute).
"""

import tyro

from pipelines import cli
from pipelines.nightly.config import SegmentConfig
from pipelines.nightly.preview import preview
from pipelines.segment import segment


def run(config: SegmentConfig) -> cli.Result:
    """The whole run, or its plan alone."""
    return preview(config) if config.plan else segment(config, began=cli.process_began())


if __name__ == "__main__":
    cli.main(lambda: tyro.cli(SegmentConfig, description=__doc__), run)
