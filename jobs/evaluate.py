r"""Evaluate any model on any prepared split.

    python jobs/evaluate.py --model runs/street/model --data data/camvid --split val --output scores/street
    ray job submit --working-dir . -- python jobs/evaluate.py --model models:/street@champion \
        --data s3://bucket/camvid --split val --output s3://bucket/scores/street --workers 8 --use-gpu
    python jobs/evaluate.py --model runs/street/model --data data/camvid --output scores/protocols \
        --protocols single multi_scale_flip sliding crf --group-by folder
    python jobs/evaluate.py --model runs/deconvnet/model --ensemble runs/fcn8s/model --recipe-inference \
        --data data/voc --output scores/edeconvnet

Reads: a model (folder URI or models:/name@alias), or several as an ensemble, and a prepared dataset.

Writes: scores.json, one table each for classes, confusion, images, distances from borders, confidence, groups of images
and protocols (docs/evaluation.md explains them), pictures of the best, median and worst images, charts, index.html with
all of it, manifest.json last; and an MLflow run.

Takes: start-up of 15 seconds, then what the network takes (100 images of 360 x 480 on two cores: about half a minute).
"""

import tyro

from pipelines import cli
from pipelines.evaluate import EvaluateConfig, evaluate

if __name__ == "__main__":
    cli.main(lambda: tyro.cli(EvaluateConfig, description=__doc__), evaluate)
