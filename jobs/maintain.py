r"""Keep the tables of jobs/segment.py small: drop old masks, merge small files, remove what has expired.

    python jobs/maintain.py --tables tables/street --drop-masks-older-than-days 90 --compact --expire-snapshots-days 7
    ray job submit --working-dir . -- python jobs/maintain.py --tables s3://lake/street \
        --drop-masks-older-than-days 90 --compact --expire-snapshots-days 7 --apply

Without --apply it says what it would do and changes nothing.

Reads: snapshots, and the files that it merges.
Writes: new snapshots and merged files; removes expired snapshots, the files that only they name, and what killed jobs
left. Predictions are never dropped. It may run beside jobs/segment.py; killed, the same command finishes.
Takes: one or two seconds of one core for every 10 MB that are merged; runs on the driver alone.
"""

import tyro

from pipelines import cli
from pipelines.maintain import MaintainConfig, maintain

if __name__ == "__main__":
    cli.main(lambda: tyro.cli(MaintainConfig, description=__doc__), maintain)
