r"""Train a recipe: python jobs/train.py RECIPE --data URI --output URI --name NAME

    ray job submit --working-dir . -- python jobs/train.py camvid.dupsampling_resnet50 --data s3://lake/camvid \
        --label-pca s3://lake/camvid-pca16 --weights timm --output s3://lake/runs --name dup50 --workers 4 --use-gpu

Reads: a prepared dataset (for segmentation, or for classification with a recipe `imagenet...` or `crops...`), a label
PCA where the network needs one, backbone weights or the model folder of an earlier training.
Writes: OUTPUT/NAME/model (a model folder), checkpoints beside it, an MLflow run, a registered version with --register.
Takes: two minutes (scenes, two cores) to hours. The same command continues after any interruption.
"""

import sys

from pipelines import cli
from pipelines.train import parse_command_line, train

if __name__ == "__main__":
    cli.main(lambda: parse_command_line(sys.argv[1:], description=__doc__ or ""), train)
