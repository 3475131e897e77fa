"""Every recipe is complete and consistent, and the command line can change any field of it and nothing else."""

import dataclasses
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from torch import nn

from pipelines.recipes import RECIPES, Recipe, find_recipe, recipe_list, recipe_to_dict
from pipelines.train import TrainConfig, parse_command_line
from segcore.augment_config import AugmentConfig, ClassificationAugmentConfig
from segcore.classifier import ClassifierConfig
from segcore.cost import count_multiply_adds
from segcore.models import MODELS, DeconvNetConfig, DUpsamplingConfig, ModelConfig, at_output_stride, meta_model
from segcore.networks import network_from_dict, segmentation_config
from segcore.optim import poly_factor
from tests.pipelines.learnable_dataset import tiny_recipe

WHERE = ["--data", "d", "--output", "o", "--name", "n"]
DUPSAMPLING = "scenes.dupsampling_mobilenetv3"
TRAINING_IMAGES = {"voc": 10_582, "cityscapes": 2_975, "ade20k": 20_210, "pascal_context": 4_998, "camvid": 367}
CLASSES = {"voc": 21, "cityscapes": 19, "ade20k": 150, "pascal_context": 60, "camvid": 11, "scenes": 8}
PUBLISHED_STEPS = {
    "voc.table1_dupsampling_os16": 30_000,
    "voc.fcn_32s_vgg16": 100_000,
    "voc.fcn_16s_vgg16": 100_000,
    "voc.fcn_8s_vgg16": 100_000,
    "voc.fcn_8s_at_once_vgg16": 300_000,
    "voc.deeplab_v1_vgg16": 6_000,
    "voc.deeplab_v2_vgg16": 20_000,
    "voc.deeplab_v2_resnet101": 20_000,
    "voc.deeplab_v3_resnet101": 30_000,
    "voc.deeplab_v3plus_resnet101": 30_000,
    "voc.deeplab_v3plus_xception65": 30_000,
    "voc.dilated_frontend_vgg16": 60_000,
    "voc.dilated_context_vgg16": 60_000,
    "voc.pspnet_resnet50": 30_000,
    "voc.pspnet_resnet101": 30_000,
    "camvid.segnet": 40_000,
    "camvid.segnet_basic": 10_000,
    "cityscapes.segnet_vgg16": 40_000,
    "cityscapes.deeplab_v2_resnet101": 20_000,
    "cityscapes.deeplab_v3_resnet101": 90_000,
    "cityscapes.deeplab_v3plus_xception65": 90_000,
    "cityscapes.deeplab_v3plus_xception71": 90_000,
    "cityscapes.dilated_context_vgg16": 40_000,
    "cityscapes.pspnet_resnet50": 90_000,
    "cityscapes.pspnet_resnet101": 90_000,
    "cityscapes.unet": 160_000,
    "cityscapes.icnet": 30_000,
    "cityscapes.bisenet_xception39": 140_000,
    "cityscapes.bisenet_resnet18": 80_000,
    "cityscapes.bisenet_xception39_scales": 140_000,
    "cityscapes.bisenet_resnet18_scales": 80_000,
    "ade20k.deeplab_v3plus_xception65": 150_000,
    "ade20k.pspnet_resnet50": 150_000,
    "ade20k.pspnet_resnet101": 150_000,
    "pascal_context.fcn_32s_vgg16": 300_000,
    "pascal_context.fcn_16s_vgg16": 300_000,
    "pascal_context.fcn_8s_vgg16": 300_000,
    "pascal_context.deeplab_v2_resnet101": 20_000,
    "pascal_context.dupsampling_xception65": 30_000,
    "pascal_context.dupsampling_xception71": 30_000,
}
"""Of recipes whose papers count iterations, or that take those of another dataset."""
CROPS = {"voc.deconvnet_stage1": (200_000, 20_000), "voc.deconvnet_stage2": (2_700_000, 40_000)}
"""Training crops and steps of DeconvNet's stages; the paper rounds the crops."""
SEGMENTATION = [name for name in RECIPES if name.split(".")[0] in CLASSES]
COSTED = [name for name in SEGMENTATION if ".table" not in name and "G multiply-adds" in (RECIPES[name].__doc__ or "")]
"""Recipes whose docstring gives multiply-adds; the rows of tables have their own test."""


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_and_says_what_it_is(name: str) -> None:
    recipe = find_recipe(name)
    assert recipe.recipe_name == name
    assert name.split(".")[1] == RECIPES[name].__name__ and RECIPES[name].__module__.endswith(name.split(".")[0])
    assert len((RECIPES[name].__doc__ or "").split()) >= 12
    assert name in recipe_list()
    values = json.loads(json.dumps(recipe_to_dict(recipe)))
    assert network_from_dict(values["model"]) == recipe.model
    assert values["augment"]["crop_height"] == recipe.augment.crop_height


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_says_in_its_first_line_what_it_trains_and_names_its_paper_or_that_it_is_ours(name: str) -> None:
    documentation = (RECIPES[name].__doc__ or "").strip()
    first = documentation.partition("\n")[0]
    assert first.endswith((".", ":")) and len(first) <= 120
    assert re.search(r"[Oo]urs?\b|[Pp]aper|[Tt]able \d|arXiv", documentation)
    if name in PUBLISHED_STEPS and ".table" not in name:
        assert re.search(r"arXiv \d{4}\.\d{4,5}", documentation) or re.search(r"As `\w+`", documentation)
        assert re.search(r"\d\d\.\d+ % mIoU|no published score", first)


@cache
def on_meta(config: ModelConfig, num_classes: int) -> nn.Module:
    """Rows of tables share networks: each is built once."""
    return meta_model(config, num_classes)


@pytest.mark.parametrize("name", SEGMENTATION)
def test_every_recipe_s_network_builds_as_it_is_trained_and_as_it_is_evaluated(name: str) -> None:
    recipe = find_recipe(name)
    config, num_classes = segmentation_config(recipe.model), CLASSES[name.split(".")[0]]
    tensors = on_meta(config, num_classes).state_dict()
    if stride := recipe.inference.output_stride:
        evaluated = on_meta(at_output_stride(config, stride), num_classes).state_dict()
        assert {key: value.shape for key, value in evaluated.items()} == {
            key: value.shape for key, value in tensors.items()
        }
    if recipe.inference.mode == "sliding":
        assert isinstance(recipe.augment, AugmentConfig)
        assert recipe.inference.window_px == recipe.augment.crop_height == recipe.augment.crop_width


@pytest.mark.parametrize("name", PUBLISHED_STEPS)
def test_epochs_are_the_published_iterations(name: str) -> None:
    recipe = find_recipe(name)
    steps = recipe.epochs * recipe.steps_per_epoch(num_images=TRAINING_IMAGES[name.split(".")[0]], num_workers=1)
    assert steps == pytest.approx(PUBLISHED_STEPS[name], rel=0.05)
    stated = re.search(r"\(([\d,]+)\)", RECIPES[name].__doc__ or "")
    assert stated is None or int(stated[1].replace(",", "")) == steps


@pytest.mark.parametrize("name", CROPS)
def test_epochs_of_crops_are_about_the_published_iterations(name: str) -> None:
    num_crops, steps = CROPS[name]
    recipe = find_recipe(name)
    assert recipe.epochs * num_crops / recipe.batch_size == pytest.approx(steps, rel=0.1)
    assert recipe.batch_norm_batches <= recipe.steps_per_epoch(num_images=num_crops, num_workers=1)


@pytest.mark.parametrize("stage", ["voc.deconvnet_stage{}", "camvid.small_deconvnet_stage{}"])
def test_stage_two_of_deconvnet_trains_the_network_of_stage_one(stage: str) -> None:
    one, two = (find_recipe(stage.format(number)) for number in (1, 2))
    assert isinstance(one.model, DeconvNetConfig) and one.model == two.model
    assert one.augment.crop_height == one.augment.crop_width == one.model.input_px
    assert "--start-from" in (RECIPES[two.recipe_name].__doc__ or "")
    assert one.inference == two.inference and one.inference.mode == "proposals"
    assert one.inference.crop_px == one.model.input_px and one.inference.proposals.best == 50
    assert one.inference.whole_image == stage.startswith("camvid"), "VOC alone has a background"


@pytest.mark.parametrize("name", COSTED)
def test_multiply_adds_of_a_crop_are_those_that_the_docstring_gives(name: str) -> None:
    recipe = find_recipe(name)
    num_classes = 59 if name.startswith("pascal_context.encnet") else CLASSES[name.split(".")[0]]
    counted = count_multiply_adds(
        on_meta(segmentation_config(recipe.model), num_classes),
        recipe.augment.crop_height,
        recipe.augment.crop_width,
    )
    stated = re.search(r"([\d.]+) G\s+multiply-adds\s+a\s+crop", RECIPES[name].__doc__ or "")
    assert stated is not None
    half_a_digit = 0.5 * 10.0 ** -len(stated[1].partition(".")[2])
    assert counted / 1e9 == pytest.approx(float(stated[1]), abs=1.01 * half_a_digit)


def test_camvid_has_every_network_for_two_cores() -> None:
    small = [
        name for name in RECIPES if name.startswith("camvid.") and ("small_" in name or "efficientnet_lite0" in name)
    ]
    assert {type(find_recipe(name).model) for name in small} == set(MODELS.values())
    common = find_recipe("camvid.deeplab_v3plus_efficientnet_lite0").optim
    for name in (name for name in small if "small_" in name):
        narrow = name in ("camvid.small_enet", "camvid.small_espnet")  # whose decoders need larger steps
        assert find_recipe(name).optim == (dataclasses.replace(common, learning_rate=2e-3) if narrow else common)
        assert "Ours" in (RECIPES[name].__doc__ or "") and "docs/log.md" in (RECIPES[name].__doc__ or "")


@pytest.mark.parametrize("dataset", ["voc", "pascal_context"])
def test_fcn_s_rates_of_a_mean_loss_move_weights_as_the_released_ones_of_a_summed_loss(dataset: str) -> None:
    """A released step is rate * (sum of the pixels' gradients + decay * weight), 5e-4 the decay."""
    released = {"fcn_32s": 1e-10, "fcn_16s": 1e-12, "fcn_8s": 1e-14}
    released |= {"fcn_8s_at_once": 1e-10} if dataset == "voc" else {}
    for name, rate in released.items():
        recipe = find_recipe(f"{dataset}.{name}_vgg16")
        assert recipe.optim.learning_rate == pytest.approx(rate * 375 * 500)
        assert recipe.optim.learning_rate * recipe.optim.weight_decay == pytest.approx(rate * 5e-4)
        assert (recipe.optim.momentum, recipe.optim.decoder_multiplier, recipe.batch_size) == (0.99, 1.0, 1)
        late = poly_factor(999_900, total_steps=1_000_000, warmup_steps=0, power=recipe.optim.power)
        assert late > 0.99


def test_recipes_that_are_compared_differ_in_their_network_alone() -> None:
    for first, second in (
        (DUPSAMPLING, "scenes.deeplab_v3plus_mobilenetv3"),
        ("camvid.dupsampling_efficientnet_lite0", "camvid.bilinear_efficientnet_lite0"),
        ("camvid.dupsampling_resnet50", "camvid.deeplab_v3plus_resnet50"),
    ):
        one, other = recipe_to_dict(find_recipe(first)), recipe_to_dict(find_recipe(second))
        assert {key for key in one if one[key] != other[key]} == {"model", "recipe_name"}
        for shared in ("backbone", "output_stride", "aspp_channels"):
            assert one["model"][shared] == other["model"][shared]


@pytest.mark.parametrize(
    ("encoder", "whole", "also_differs"),
    [
        ("cityscapes.enet_encoder", "cityscapes.enet", set()),
        ("cityscapes.espnet_c", "cityscapes.espnet", {"batch_size"}),
        ("camvid.enet_encoder", "camvid.enet", set()),
        ("camvid.small_enet_encoder", "camvid.small_enet", {"optim"}),
        ("camvid.small_espnet_c", "camvid.small_espnet", {"optim"}),
    ],
)
def test_the_halves_of_a_training_in_two_stages_differ_in_the_stage(
    encoder: str, whole: str, also_differs: set[str]
) -> None:
    first, second = recipe_to_dict(find_recipe(encoder)), recipe_to_dict(find_recipe(whole))
    assert {key for key in first if first[key] != second[key]} == {"model", "recipe_name"} | also_differs
    assert (first["model"]["stage"], second["model"]["stage"]) == ("encoder", "whole")
    assert first["model"] | {"stage": "whole"} == second["model"]
    assert f"`{encoder.partition('.')[2]}`" in (RECIPES[whole].__doc__ or "")
    assert f"`{whole.partition('.')[2]}`" in (RECIPES[encoder].__doc__ or "")


@pytest.mark.parametrize("name", ["cityscapes.enet", "camvid.enet", "cityscapes.espnet", "cityscapes.espnet_c"])
def test_enet_and_espnet_are_trained_as_their_released_code_does(name: str) -> None:
    recipe = find_recipe(name)
    optim, augment = recipe.optim, recipe.augment
    assert isinstance(augment, AugmentConfig)
    assert (optim.optimiser, optim.learning_rate, optim.decoder_multiplier) == ("adamw", 5e-4, 1.0)
    if name.endswith(".enet"):
        assert (optim.weight_decay, recipe.batch_size, recipe.epochs) == (2e-4, 10, 300)
        assert (augment.scale_min, augment.scale_max, augment.flip) == (1.0, 1.0, False)
    else:
        five_sizes = [side / 1024 for side in (1024, 1536, 1280, 768, 512)]
        assert (augment.scale_min, augment.scale_max) == (min(five_sizes), max(five_sizes))
        assert recipe.epochs == 300 * len(five_sizes)
        assert (optim.weight_decay, recipe.batch_size) == (5e-4, 12 if name.endswith("_c") else 6)


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=rf"unknown recipe 'camvid.x'; known: .*{DUPSAMPLING}"):
        find_recipe("camvid.x")


def test_steps_are_equal_on_all_workers_and_leave_incomplete_batches_out() -> None:
    recipe = tiny_recipe(batch_size=12)
    assert recipe.steps_per_epoch(num_images=100, num_workers=1) == 8
    assert recipe.steps_per_epoch(num_images=100, num_workers=3) == 8  # 33 images each, batches of 4
    assert recipe.steps_per_epoch(num_images=95, num_workers=4) == 7  # 23 images each, batches of 3
    with pytest.raises(ValueError, match="does not divide among 5 workers"):
        recipe.steps_per_epoch(num_images=100, num_workers=5)
    with pytest.raises(ValueError, match="do not fill one batch"):
        recipe.steps_per_epoch(num_images=11, num_workers=1)


@pytest.mark.parametrize("field", ["epochs", "batch_size", "validate_every", "keep_checkpoints", "shuffle_buffer"])
def test_counts_below_one_are_refused(field: str) -> None:
    recipe = tiny_recipe()
    values = {name: getattr(recipe, name) for name in ("model", "augment", "optim", "epochs", "batch_size")}
    with pytest.raises(ValueError, match=f"{field} is 0"):
        Recipe(**(values | {field: 0}))


def test_a_negative_number_of_batches_for_batch_normalisation_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_norm_batches is -1; it must not be negative"):
        dataclasses.replace(tiny_recipe(), batch_norm_batches=-1)


def parse(*arguments: str) -> TrainConfig:
    return parse_command_line([DUPSAMPLING, *WHERE, *arguments], description="test")


def test_a_run_knows_its_recipe_whatever_flags_change_and_no_flag_changes_that(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert parse("--epochs", "3").recipe.recipe_name == DUPSAMPLING
    assert recipe_to_dict(parse("--epochs", "3").recipe)["recipe_name"] == DUPSAMPLING
    with pytest.raises(SystemExit) as ended:
        parse("--recipe-name", "camvid.table2_none")
    assert ended.value.code == 2 and "--recipe-name" in capsys.readouterr().err


def test_any_field_is_overridden_by_its_dotted_name() -> None:
    config = parse(
        "--model.output-stride", "16", "--model.features", "2", "8", "--optim.learning-rate", "0.5",
        "--augment.no-flip", "--epochs", "3", "--precision", "bfloat16", "--use-gpu", "--workers", "4",
    )  # fmt: skip
    assert isinstance(config.recipe.model, DUpsamplingConfig)
    assert (config.recipe.model.output_stride, config.recipe.model.features) == (16, (2, 8))
    assert (config.recipe.optim.learning_rate, config.recipe.augment.flip) == (0.5, False)
    assert (config.recipe.epochs, config.recipe.precision) == (3, "bfloat16")
    assert (config.use_gpu, config.workers, config.data, config.name) == (True, 4, "d", "n")


def test_a_classifier_s_recipe_has_flags_of_its_own_network_and_augmentation(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def parse_crops(*arguments: str) -> Recipe:
        return parse_command_line(["crops.mobilenet_v3_small", *WHERE, *arguments], description="test").recipe

    assert parse_crops() == find_recipe("crops.mobilenet_v3_small")
    recipe = parse_crops("--model.dropout", "0.25", "--augment.area-min", "0.5", "--model.backbone", "resnet18")
    assert recipe.task == "classification"
    assert recipe.model == ClassifierConfig(backbone="resnet18", dropout=0.25)
    assert isinstance(recipe.augment, ClassificationAugmentConfig) and recipe.augment.area_min == 0.5
    with pytest.raises(SystemExit):
        parse_crops("--augment.scale-min", "0.5")
    assert "--augment.scale-min" in capsys.readouterr().err


def test_without_overrides_the_recipe_is_the_function_s() -> None:
    assert parse().recipe == find_recipe(DUPSAMPLING)


@pytest.mark.parametrize("wrong", [["--modl.output-stride", "16"], ["--model.low-levl", "1"], ["stray"]])
def test_an_unknown_flag_is_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(*wrong)
    assert ended.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_a_field_that_another_network_has_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--model.decoder-channels", "8")
    assert "--model.decoder-channels" in capsys.readouterr().err


def test_a_value_that_a_config_refuses_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--model.output-stride", "12")
    assert "output_stride is 12" in "".join(capsys.readouterr().err.split("\n")).replace("│", "")


def test_a_recipe_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_command_line(["camvid.nope", *WHERE], description="test")
    assert ended.value.code == 2 and "unknown recipe 'camvid.nope'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        parse_command_line([], description="test")
    assert ended.value.code == 2


def test_help_lists_recipes_and_every_setting_of_one() -> None:
    job = Path(__file__).parents[2] / "jobs" / "train.py"
    shown = subprocess.run([sys.executable, str(job), "--help"], capture_output=True, text=True, check=True).stdout
    for name in RECIPES:
        assert name in shown
    assert "ray job submit" in shown


def test_help_of_a_recipe_shows_its_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse("--help")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for flag in (
        "--data",
        "--label-pca",
        "--tracking-uri",
        "--model.dupsample.num-components",
        "--optim.power",
        "--augment.hue",
    ):
        assert flag in shown
    assert "(default: mobilenet_v3_small)" in " ".join(shown.replace("│", " ").split())
