"""The whole main job on generated street scenes: nothing to download, nothing to set up before.

    python jobs/demo.py --output demo
    ray job submit --working-dir . -- python jobs/demo.py --output /shared/demo

Prepares scenes, fits the label PCA, trains DUpsampling and bilinear upsampling on one small backbone, evaluates both,
segments a folder of ordinary, unusual and broken files, and compares.

Reads: nothing.

Writes: everything below OUTPUT; begin with OUTPUT/index.html.

Takes: less than 8 minutes on two cores; the same command continues after an interruption.
"""

import tyro

from pipelines import cli
from pipelines.demo import DemoConfig, demo

if __name__ == "__main__":
    cli.main(lambda: tyro.cli(DemoConfig, description=__doc__), demo)
