"""The recipes of Tian et al.'s tables: rows differ in their networks alone, whose decoders cost what is published."""

import pytest
import torch

from pipelines.comparison.paper_tables import decoder_flops
from pipelines.comparison.published_tables import DUPSAMPLING
from pipelines.recipes import RECIPES, find_recipe, recipe_to_dict
from segcore.cost import decoder_multiply_adds
from segcore.models import DUpsamplingConfig, SegmentationOutput, meta_model, needed_label_pca
from segcore.networks import segmentation_config

DATASETS = ("voc", "camvid")
CLASSES = {"voc": 21, "camvid": 11}
ROWS = [name.partition(".")[2] for name in RECIPES if name.startswith("voc.table")]

UNEXPLAINED_ROW = "table3_resnet50_vanilla_2_16"
PUBLISHED_FLOPS = {
    row: paper.decoder_gflops
    for row, paper in DUPSAMPLING.items()
    if paper.decoder_gflops is not None and row != UNEXPLAINED_ROW
}


def test_both_datasets_have_the_17_rows() -> None:
    assert len(ROWS) == 17 and set(ROWS) == set(DUPSAMPLING)
    assert len(PUBLISHED_FLOPS) == 12, "tables 2 and 3; table 1 prints none"
    for dataset in DATASETS:
        assert [name for name in RECIPES if name.startswith(f"{dataset}.table")] == [f"{dataset}.{row}" for row in ROWS]


@pytest.mark.parametrize("dataset", DATASETS)
def test_rows_differ_in_their_network_alone(dataset: str) -> None:
    first, *others = (recipe_to_dict(find_recipe(f"{dataset}.{row}")) for row in ROWS)
    for other in others:
        assert {key for key in first if first[key] != other[key]} <= {"model", "recipe_name"}


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("row", ROWS)
def test_every_row_builds_with_the_decoder_and_output_stride_of_its_name(dataset: str, row: str) -> None:
    recipe = find_recipe(f"{dataset}.{row}")
    config = segmentation_config(recipe.model)
    height, width = recipe.augment.crop_height, recipe.augment.crop_width
    output = meta_model(config, CLASSES[dataset])(torch.empty(1, 3, height, width, device="meta"))
    assert isinstance(output, SegmentationOutput)
    assert output.logits_NCHW.shape == (1, CLASSES[dataset], height, width)
    assert config.output_stride == (32 if row.endswith("os32") else 16)
    assert isinstance(config, DUpsamplingConfig) == ("vanilla" not in row and "bilinear" not in row)
    components = 128 if dataset == "camvid" or "xception65" in row else 64
    assert needed_label_pca(config) in (None, (config.output_stride, components))


def test_camvid_rows_of_both_backbones_have_one_backbone() -> None:
    assert {find_recipe(f"camvid.{row}").model.backbone for row in ROWS} == {"efficientnet_lite0"}
    for row in ROWS:
        expected = "xception65" if "xception65" in row else "resnet50_deep"
        assert find_recipe(f"voc.{row}").model.backbone == expected


@pytest.mark.parametrize(("row", "published"), PUBLISHED_FLOPS.items())
def test_decoder_flops_are_the_papers(row: str, published: float) -> None:
    config = segmentation_config(find_recipe(f"voc.{row}").model)
    bias_adds = 33 * 33 * 21 * 256 if isinstance(config, DUpsamplingConfig) else 0
    flops = 2 * decoder_multiply_adds(meta_model(config, 21), 513, 513) + bias_adds
    assert flops / 1e9 == pytest.approx(published, rel=0.01)
    assert decoder_flops(config) == flops


def test_two_features_fused_at_stride_2_cost_what_our_fusion_does() -> None:
    """The paper prints 22.34 B for this row and does not say how its vanilla decoder fuses two features.

    No arrangement that we tried gives that figure, so this only states what ours is: each feature is projected at its
    own stride and enlarged to stride 2, where one is fused after the other (40.8 B).
    """

    def separable(inputs: int, outputs: int) -> int:
        return 9 * inputs + inputs * outputs

    fusion = separable(256 + 48, 256) + separable(256, 256)
    projections = 257 * 257 * 128 * 48 + 33 * 33 * 1024 * 48
    expected = projections + 257 * 257 * (2 * fusion + 256 * 21)
    config = segmentation_config(find_recipe(f"voc.{UNEXPLAINED_ROW}").model)
    assert decoder_multiply_adds(meta_model(config, 21), 513, 513) == expected
