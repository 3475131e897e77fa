r"""Export for other tools: masks of jobs/segment.py (indexed PNGs, COCO run lengths, GeoJSON polygons), or a model.

    python jobs/export.py png --tables tables/street --output to-label \
        --where "mean_confidence < 0.6 AND run_date = '2026-11-20'" --order-by mean_confidence --limit 100
    python jobs/export.py coco --tables tables/street --output coco --where "model_version = '3'"
    python jobs/export.py geojson --tables s3://lake/street --output s3://lake/polygons --world-files
    ray job submit --working-dir . -- python jobs/export.py png --tables s3://lake/street --output s3://lake/masks
    python jobs/export.py model --model models:/street@champion --output street-onnx --format onnx
    python jobs/export.py model --model runs/street/model --output street-hf --format hf --scores scores/street

Masks. Reads: the newest snapshot of the tables; --where and --order-by are SQL on the columns of predictions.
Writes: OUTPUT/<image's path>.png or .geojson, or OUTPUT/coco.json; images.csv (the chosen images, in order);
manifest.json last. PNG and COCO hold the masks' exact pixels, simplified GeoJSON does not.
Takes: 10 to 50 ms of one core per megapixel; runs on the driver alone.

Models. Reads: a model folder, and an evaluation of it with --scores. Writes: OUTPUT/model.pt2 or model.onnx, or a
folder in the Hugging Face layout; README.md (the model card); manifest.json last, after the file gave the network's
scores at several sizes. docs/export.md says which network goes where. Takes: half a minute to some minutes of one core.
"""

import tyro

from pipelines import cli
from pipelines.export import SUBCOMMANDS, ExportConfig, export_any


def parse() -> ExportConfig:
    """The command line; a subcommand per format of masks, and one for models."""
    config: ExportConfig = tyro.extras.subcommand_cli_from_dict(SUBCOMMANDS, description=__doc__)
    return config


if __name__ == "__main__":
    cli.main(parse, export_any)
