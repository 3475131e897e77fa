"""Recipes by name. A recipe says *what* is run; the command line says *where*."""

import dataclasses
from collections.abc import Callable

from pipelines.recipes import ade20k, camvid, cityscapes, crops, imagenet, minc, pascal_context, scenes, voc
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
    "imagenet.xception39": imagenet.xception39,
    "minc.deep_ten_resnet50": minc.deep_ten_resnet50,
    "camvid.dupsampling_resnet50": camvid.dupsampling_resnet50,
    "camvid.deeplab_v3plus_resnet50": camvid.deeplab_v3plus_resnet50,
    "camvid.dupsampling_efficientnet_lite0": camvid.dupsampling_efficientnet_lite0,
    "camvid.deeplab_v3plus_efficientnet_lite0": camvid.deeplab_v3plus_efficientnet_lite0,
    "camvid.bilinear_efficientnet_lite0": camvid.bilinear_efficientnet_lite0,
    "camvid.dilated_context_vgg16": camvid.dilated_context_vgg16,
    "camvid.dfanet_a": camvid.dfanet_a,
    "camvid.dfanet_b": camvid.dfanet_b,
    "camvid.icnet": camvid.icnet,
    "camvid.bisenet_xception39": camvid.bisenet_xception39,
    "camvid.bisenet_resnet18": camvid.bisenet_resnet18,
    "camvid.small_deeplab_v1": camvid.small_deeplab_v1,
    "camvid.small_deeplab_v2": camvid.small_deeplab_v2,
    "camvid.small_deeplab_v3": camvid.small_deeplab_v3,
    "camvid.small_fcn8s": camvid.small_fcn8s,
    "camvid.small_dilated_context": camvid.small_dilated_context,
    "camvid.small_pspnet": camvid.small_pspnet,
    "camvid.small_encnet": camvid.small_encnet,
    "camvid.small_dfanet_a": camvid.small_dfanet_a,
    "camvid.small_dfanet_b": camvid.small_dfanet_b,
    "camvid.small_icnet": camvid.small_icnet,
    "camvid.small_bisenet": camvid.small_bisenet,
    "camvid.small_bisenet_resnet18": camvid.small_bisenet_resnet18,
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
    "voc.fcn_32s_vgg16": voc.fcn_32s_vgg16,
    "voc.fcn_16s_vgg16": voc.fcn_16s_vgg16,
    "voc.fcn_8s_vgg16": voc.fcn_8s_vgg16,
    "voc.fcn_8s_at_once_vgg16": voc.fcn_8s_at_once_vgg16,
    "voc.deeplab_v1_vgg16": voc.deeplab_v1_vgg16,
    "voc.deeplab_v2_vgg16": voc.deeplab_v2_vgg16,
    "voc.deeplab_v2_resnet101": voc.deeplab_v2_resnet101,
    "voc.deeplab_v3_resnet101": voc.deeplab_v3_resnet101,
    "voc.deeplab_v3plus_resnet101": voc.deeplab_v3plus_resnet101,
    "voc.deeplab_v3plus_xception65": voc.deeplab_v3plus_xception65,
    "voc.dilated_frontend_vgg16": voc.dilated_frontend_vgg16,
    "voc.dilated_context_vgg16": voc.dilated_context_vgg16,
    "voc.pspnet_resnet50": voc.pspnet_resnet50,
    "voc.pspnet_resnet101": voc.pspnet_resnet101,
    "voc.encnet_resnet101": voc.encnet_resnet101,
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
    "cityscapes.deeplab_v2_resnet101": cityscapes.deeplab_v2_resnet101,
    "cityscapes.deeplab_v3_resnet101": cityscapes.deeplab_v3_resnet101,
    "cityscapes.deeplab_v3plus_xception65": cityscapes.deeplab_v3plus_xception65,
    "cityscapes.deeplab_v3plus_xception71": cityscapes.deeplab_v3plus_xception71,
    "cityscapes.dilated_context_vgg16": cityscapes.dilated_context_vgg16,
    "cityscapes.pspnet_resnet50": cityscapes.pspnet_resnet50,
    "cityscapes.pspnet_resnet101": cityscapes.pspnet_resnet101,
    "cityscapes.encnet_resnet101": cityscapes.encnet_resnet101,
    "cityscapes.dfanet_a": cityscapes.dfanet_a,
    "cityscapes.dfanet_a_half": cityscapes.dfanet_a_half,
    "cityscapes.dfanet_b": cityscapes.dfanet_b,
    "cityscapes.icnet": cityscapes.icnet,
    "cityscapes.icnet_full_width": cityscapes.icnet_full_width,
    "cityscapes.bisenet_xception39": cityscapes.bisenet_xception39,
    "cityscapes.bisenet_resnet18": cityscapes.bisenet_resnet18,
    "cityscapes.bisenet_xception39_scales": cityscapes.bisenet_xception39_scales,
    "cityscapes.bisenet_resnet18_scales": cityscapes.bisenet_resnet18_scales,
    "cityscapes.bisenet_resnet101_scales": cityscapes.bisenet_resnet101_scales,
    "ade20k.deeplab_v3plus_xception65": ade20k.deeplab_v3plus_xception65,
    "ade20k.pspnet_resnet50": ade20k.pspnet_resnet50,
    "ade20k.pspnet_resnet101": ade20k.pspnet_resnet101,
    "ade20k.encnet_resnet50": ade20k.encnet_resnet50,
    "ade20k.encnet_resnet101": ade20k.encnet_resnet101,
    "pascal_context.fcn_32s_vgg16": pascal_context.fcn_32s_vgg16,
    "pascal_context.fcn_16s_vgg16": pascal_context.fcn_16s_vgg16,
    "pascal_context.fcn_8s_vgg16": pascal_context.fcn_8s_vgg16,
    "pascal_context.deeplab_v2_resnet101": pascal_context.deeplab_v2_resnet101,
    "pascal_context.encnet_resnet50": pascal_context.encnet_resnet50,
    "pascal_context.encnet_resnet101": pascal_context.encnet_resnet101,
    "pascal_context.dupsampling_xception65": pascal_context.dupsampling_xception65,
    "pascal_context.dupsampling_xception71": pascal_context.dupsampling_xception71,
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
