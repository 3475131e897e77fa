r"""Compare the trained networks of an MLflow experiment: one table, one page.

    python jobs/compare.py --experiment street --output comparison
    ray job submit --working-dir . -- python jobs/compare.py --experiment street --output s3://bucket/comparison \
        --data s3://bucket/camvid --split val --tracking-uri http://mlflow:5000
    python jobs/compare.py --experiment street --output timm --filter "params.weights = 'timm'" --pair bilinear dup
    python jobs/compare.py --experiment rows --output rows --table dupsampling

Reads: MLflow runs of jobs/train.py and jobs/evaluate.py, their model folders, a few images of the dataset and those
that moved; with --table dupsampling the label PCAs of the runs and the labels of --num-bound-images images.

Writes: index.html and comparison.md (scores over seeds, paired differences, Pareto fronts, per-class IoU, size, cost,
speed, what differs, what moved), their tables as CSV, with --table <table>.csv, manifest.json last; all of it to an
MLflow run of its own too; and the tables to the terminal. docs/comparison.md explains them.

Takes: some seconds per model, two per pair of networks (on as many images as VOC val has), half a second per image that
moved, and with --table dupsampling a second per image for mIoU*; runs on the driver alone.
"""

import tyro

from pipelines import cli
from pipelines.compare import CompareConfig, compare

if __name__ == "__main__":
    cli.main(lambda: tyro.cli(CompareConfig, description=__doc__), compare)
