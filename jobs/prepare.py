"""Prepare a dataset: check every image and label, and write them as Parquet shards with a manifest.

    ray job submit --working-dir . -- python jobs/prepare.py camvid --root s3://raw/CamVid --output s3://lake/camvid
    python jobs/prepare.py folder --images photos --labels masks --classes classes.yaml --output data/mine
    python jobs/prepare.py cityscapes --root cityscapes --output data/cityscapes
    python jobs/prepare.py voc --root VOCdevkit/VOC2012 --sbd benchmark_RELEASE/dataset --output data/voc
    python jobs/prepare.py scenes --output data/scenes
    python jobs/prepare.py class_folders --root ILSVRC --output data/imagenet --images-per-part 1024
    python jobs/prepare.py label_crops --data data/scenes --crops data/crops --output data/classified-crops
    python jobs/prepare.py object_crops --data data/camvid --stage 1 --output data/objects --images-per-part 16

Reads: a raw dataset in one of the layouts below; `camvid --help` and so on tell their options. `class_folders` and
`label_crops` are for image classification, on which backbones are pre-trained. `object_crops` gives DeconvNet's two
training sets (crops of objects, crops of proposed boxes) with their label maps, from a dataset prepared before.

Writes: SPLIT/part-00000.parquet ..., failures.parquet (pairs that cannot be used, and why), manifest.json (last).

Takes about 5 ms of one core for an image of 480 x 360 (30 ms to draw a scene). A run that was killed is continued by
the same command.
"""

import tyro

from pipelines import cli
from pipelines.prepare import PrepareConfig, prepare


def parse() -> PrepareConfig:
    """The command line; --output and the like may stand after the layout's name."""
    flat = (tyro.conf.CascadeSubcommandArgs, tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes)
    return tyro.cli(PrepareConfig, description=__doc__, config=flat)


if __name__ == "__main__":
    cli.main(parse, prepare)
