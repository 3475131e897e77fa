r"""Compare the trained networks of an MLflow experiment: one table, one page.

    python jobs/compare.py --experiment street --output comparison
    ray job submit --working-dir . -- python jobs/compare.py --experiment street --output s3://bucket/comparison \
        --data s3://bucket/camvid --split val --tracking-uri http://mlflow:5000
    python jobs/compare.py --experiment rows --output rows --table dupsampling

Reads: MLflow runs of jobs/train.py and jobs/evaluate.py, their model folders, a few images of the dataset; with
--table the label PCAs of the runs and the labels of --num-bound-images images.

Writes: comparison.csv, index.html (scores, per-class IoU, size, cost, speed, what differs, the same images by each
model), with --table dupsampling.csv (the runs beside the paper's rows, also on the page), manifest.json last; and the
tables to the terminal.

Takes: some seconds per model, and with --table a second per image for mIoU*; runs on the driver alone.
"""

import tyro

from pipelines import cli
from pipelines.compare import CompareConfig, compare

if __name__ == "__main__":
    cli.main(lambda: tyro.cli(CompareConfig, description=__doc__), compare)
