"""Recipes by name. A recipe says *what* is run; the command line says *where*."""

from collections.abc import Callable

from pipelines.recipes import camvid, scenes
from pipelines.recipes.recipe import Recipe, recipe_to_dict

RECIPES: dict[str, Callable[[], Recipe]] = {
    "scenes.dupsampling_mobilenetv3": scenes.dupsampling_mobilenetv3,
    "scenes.deeplab_v3plus_mobilenetv3": scenes.deeplab_v3plus_mobilenetv3,
    "camvid.dupsampling_resnet50": camvid.dupsampling_resnet50,
    "camvid.deeplab_v3plus_resnet50": camvid.deeplab_v3plus_resnet50,
    "camvid.dupsampling_efficientnet_lite0": camvid.dupsampling_efficientnet_lite0,
    "camvid.deeplab_v3plus_efficientnet_lite0": camvid.deeplab_v3plus_efficientnet_lite0,
    "camvid.bilinear_efficientnet_lite0": camvid.bilinear_efficientnet_lite0,
}

__all__ = ["RECIPES", "Recipe", "find_recipe", "recipe_list", "recipe_to_dict"]


def find_recipe(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        ValueError: there is none; the message lists the known ones.
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; known: {', '.join(RECIPES)}")
    return RECIPES[name]()


def recipe_list() -> str:
    """One line per recipe: its name and the first line of its docstring."""
    width = max(map(len, RECIPES))
    return "\n".join(
        f"  {name:{width}}  {(recipe.__doc__ or '').strip().partition(chr(10))[0]}" for name, recipe in RECIPES.items()
    )
