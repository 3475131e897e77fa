r"""Fit the label PCA: the basis that a data-dependent decoder (DUpsampling) expands its predicted codes with.

    python jobs/fit_label_pca.py --data data/camvid --output data/camvid-pca32 --block-side 32 --num-components 128
    python jobs/fit_label_pca.py --data data/camvid --output data/camvid-pca16 --block-side 16 \
        --target-miou-bound 0.95 --report-block-sides 8 32
    ray job submit --working-dir . -- python jobs/fit_label_pca.py --data s3://bucket/camvid \
        --output s3://bucket/camvid-pca32 --recipe camvid.dupsampling_efficientnet_lite0 --workers 16

Reads: the labels of a prepared dataset (jobs/prepare.py).
Writes: basis.safetensors; index.html, recovery.csv, recovery.json, recovery.png (how well true labels survive the code,
beside bilinear and nearest enlargement), components.png (the leading basis blocks); manifest.json last. The same bytes
for any number of workers.
Takes: start-up of 10 seconds; then about a minute for CamVid (367 labels of 360 x 480, blocks of side 32) on two cores.
"""

import tyro

from pipelines import cli
from pipelines.fit_label_pca import FitLabelPCAConfig, fit_label_pca

if __name__ == "__main__":
    cli.main(lambda: tyro.cli(FitLabelPCAConfig, description=__doc__), fit_label_pca)
