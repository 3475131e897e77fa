"""Recipes by name. A recipe says *what* is run; the command line says *where*."""

import dataclasses
from collections.abc import Callable

from pipelines.recipes import camvid, crops, imagenet, scenes, voc
from pipelines.recipes.recipe import Recipe, recipe_to_dict

RECIPES: dict[str, Callable[[], Recipe]] = {
    "scenes.dupsampling_mobilenetv3": scenes.dupsampling_mobilenetv3,
    "scenes.deeplab_v3plus_mobilenetv3": scenes.deeplab_v3plus_mobilenetv3,
    "crops.mobilenet_v3_small": crops.mobilenet_v3_small,
    "crops.efficientnet_lite0": crops.efficientnet_lite0,
    "crops.dfanet_xception_b": crops.dfanet_xception_b,
    "imagenet.resnet50": imagenet.resnet50,
    "imagenet.mobilenet_v3_small": imagenet.mobilenet_v3_small,
    "imagenet.dfanet_xception_a": imagenet.dfanet_xception_a,
    "imagenet.dfanet_xception_b": imagenet.dfanet_xception_b,
    "camvid.dupsampling_resnet50": camvid.dupsampling_resnet50,
    "camvid.deeplab_v3plus_resnet50": camvid.deeplab_v3plus_resnet50,
    "camvid.dupsampling_efficientnet_lite0": camvid.dupsampling_efficientnet_lite0,
    "camvid.deeplab_v3plus_efficientnet_lite0": camvid.deeplab_v3plus_efficientnet_lite0,
    "camvid.bilinear_efficientnet_lite0": camvid.bilinear_efficientnet_lite0,
    "camvid.table1_bilinear_os32": camvid.table1_bilinear_os32,
    "camvid.table1_dupsampling_os32": camvid.table1_dupsampling_os32,
    "camvid.table1_bilinear_os16": camvid.table1_bilinear_os16,
    "camvid.table1_dupsampling_os16": camvid.table1_dupsampling_os16,
    "camvid.table2_none": camvid.table2_none,
    "camvid.table2_conv1_3": camvid.table2_conv1_3,
    "camvid.table2_b1u2c3": camvid.table2_b1u2c3,
    "camvid.table2_b3u6c3": camvid.table2_b3u6c3,
    "camvid.table2_b1u2c3_b3u6c3": camvid.table2_b1u2c3_b3u6c3,
    "camvid.table2_conv1_3_b3u6c3": camvid.table2_conv1_3_b3u6c3,
    "camvid.table3_resnet50_vanilla_4": camvid.table3_resnet50_vanilla_4,
    "camvid.table3_resnet50_vanilla_2_16": camvid.table3_resnet50_vanilla_2_16,
    "camvid.table3_resnet50_proposed_4": camvid.table3_resnet50_proposed_4,
    "camvid.table3_xception65_vanilla_4": camvid.table3_xception65_vanilla_4,
    "camvid.table3_xception65_proposed_4": camvid.table3_xception65_proposed_4,
    "camvid.table3_xception65_vanilla_16": camvid.table3_xception65_vanilla_16,
    "camvid.table3_xception65_proposed_16": camvid.table3_xception65_proposed_16,
    "voc.table1_bilinear_os32": voc.table1_bilinear_os32,
    "voc.table1_dupsampling_os32": voc.table1_dupsampling_os32,
    "voc.table1_bilinear_os16": voc.table1_bilinear_os16,
    "voc.table1_dupsampling_os16": voc.table1_dupsampling_os16,
    "voc.table2_none": voc.table2_none,
    "voc.table2_conv1_3": voc.table2_conv1_3,
    "voc.table2_b1u2c3": voc.table2_b1u2c3,
    "voc.table2_b3u6c3": voc.table2_b3u6c3,
    "voc.table2_b1u2c3_b3u6c3": voc.table2_b1u2c3_b3u6c3,
    "voc.table2_conv1_3_b3u6c3": voc.table2_conv1_3_b3u6c3,
    "voc.table3_resnet50_vanilla_4": voc.table3_resnet50_vanilla_4,
    "voc.table3_resnet50_vanilla_2_16": voc.table3_resnet50_vanilla_2_16,
    "voc.table3_resnet50_proposed_4": voc.table3_resnet50_proposed_4,
    "voc.table3_xception65_vanilla_4": voc.table3_xception65_vanilla_4,
    "voc.table3_xception65_proposed_4": voc.table3_xception65_proposed_4,
    "voc.table3_xception65_vanilla_16": voc.table3_xception65_vanilla_16,
    "voc.table3_xception65_proposed_16": voc.table3_xception65_proposed_16,
}

__all__ = ["RECIPES", "Recipe", "find_recipe", "recipe_list", "recipe_to_dict"]


def find_recipe(name: str) -> Recipe:
    """The recipe called `name`; it knows its name.

    Raises:
        ValueError: there is none; the message lists the known ones.
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; known: {', '.join(RECIPES)}")
    return dataclasses.replace(RECIPES[name](), recipe_name=name)


def recipe_list() -> str:
    """One line per recipe: its name and the first line of its docstring."""
    width = max(map(len, RECIPES))
    return "\n".join(
        f"  {name:{width}}  {(recipe.__doc__ or '').strip().partition(chr(10))[0]}" for name, recipe in RECIPES.items()
    )
