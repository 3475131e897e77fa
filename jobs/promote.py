r"""Give the challenger the champion's alias, with the evidence in the model version's description.

    python jobs/promote.py --name street --tables s3://lake/street --dry-run
    python jobs/promote.py --name street --tables s3://lake/street
    python jobs/promote.py --name street --source previous --force      # take it back

Reads: the tables' comparisons (`segment --challenger`), evaluations in MLflow (`evaluate`), the registered model.
Writes: the aliases, and the description of the version. Takes: seconds.
"""

import tyro

from pipelines import cli
from pipelines.promote import PromoteConfig, promote

if __name__ == "__main__":
    cli.main(lambda: tyro.cli(PromoteConfig, description=__doc__), promote)
