"""A model folder comes back as it was written, and a broken one is refused by name."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from pipelines import storage
from pipelines.checkpoints import (
    InputPolicy,
    ModelCard,
    card_from_dict,
    card_to_dict,
    chosen_inference,
    load_model,
    read_card,
    save_model,
)
from segcore.classifier import ClassifierConfig
from segcore.dense_crf import DenseCRFConfig
from segcore.inference import InferenceConfig
from segcore.models import DeepLabV3PlusConfig, DFANetConfig, build_model
from segcore.networks import build_network

CONFIG = DeepLabV3PlusConfig(
    backbone="mobilenet_v3_small", output_stride=32, aspp_channels=16, low_level_features=(), decoder_channels=16
)


def make_card() -> ModelCard:
    return ModelCard(
        model_config=CONFIG,
        class_names=("sky", "road", "tree"),
        palette=((0, 0, 1), (2, 3, 4), (5, 6, 255)),
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
        dataset_digest="d" * 64,
        label_pca_digest=None,
        recipe={"epochs": 3, "model": {"network": "deeplab_v3plus"}},
        scores={"val/mean_iou": 0.5},
        input_policy=InputPolicy(image_height=240, image_width=320, crop_height=192, crop_width=256),
    )


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return build_model(CONFIG, 3).eval()


@pytest.fixture
def folder(tmp_path: Path, network: nn.Module) -> str:
    uri = str(tmp_path / "model")
    save_model(uri, network, make_card())
    return uri


def test_a_model_folder_comes_back_equal(folder: str, network: nn.Module) -> None:
    bundle = load_model(folder)
    assert bundle.card == make_card()
    assert not bundle.model.training
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(bundle.model(images).logits_NCHW, network(images).logits_NCHW)


def test_the_digest_is_of_the_content_and_not_of_the_place_or_time(
    folder: str, network: nn.Module, tmp_path: Path
) -> None:
    again = save_model(str(tmp_path / "elsewhere"), network, make_card())
    assert again == load_model(folder).digest == read_card(folder)[1]
    other = dataclasses.replace(make_card(), std=(0.4, 0.5, 0.7))
    assert save_model(str(tmp_path / "other"), network, other) != again


def test_nothing_in_the_folder_is_a_pickle(folder: str) -> None:
    assert sorted(Path(uri).name for uri in storage.list_files(folder)) == [
        "config.json",
        "manifest.json",
        "model.safetensors",
    ]
    assert not any(Path(uri).read_bytes()[:2] in (b"PK", b"\x80\x02") for uri in storage.list_files(folder))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_missing_file_is_named(folder: str, name: str) -> None:
    Path(folder, name).unlink()
    with pytest.raises(ValueError, match=f"misses {name}, which its manifest lists"):
        load_model(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_changed_byte_is_noticed(folder: str, name: str) -> None:
    path = Path(folder, name)
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=rf"{name} has changed since it was written"):
        load_model(folder)


def test_a_folder_without_a_manifest_is_not_a_model(folder: str) -> None:
    Path(folder, "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"holds no manifest.json.*jobs/train.py"):
        load_model(folder)


def test_a_card_of_another_version_says_what_differs() -> None:
    values = card_to_dict(make_card()) | {"colour_space": "lab"}
    del values["mean"]
    with pytest.raises(ValueError, match="misses or adds: colour_space, mean"):
        card_from_dict(values)


def test_every_class_needs_a_colour() -> None:
    with pytest.raises(ValueError, match="3 class names and 1 colours"):
        dataclasses.replace(make_card(), palette=((0, 0, 0),))


def test_a_model_folder_may_lie_behind_any_fsspec_uri(network: nn.Module) -> None:
    uri = "memory://models/street"
    digest = save_model(uri, network, make_card())
    assert load_model(uri).digest == digest


def test_a_model_is_loaded_at_another_output_stride(folder: str, network: nn.Module) -> None:
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    dense, same = load_model(folder, output_stride=8), load_model(folder, output_stride=32)
    with torch.inference_mode():
        assert torch.equal(same.model(images).logits_NCHW, network(images).logits_NCHW)
        assert dense.model.get_submodule("backbone")(images)[32].shape[-2:] == (8, 12)
    assert dense.card == make_card() and dense.digest == load_model(folder).digest


def test_inference_is_what_was_given_or_what_the_recipe_says() -> None:
    card = dataclasses.replace(make_card(), recipe={"inference": {"flip": True, "scales": [0.5, 1.0]}})
    given = InferenceConfig(mode="sliding")
    assert chosen_inference(card, given, as_in_recipe=False) == given
    from_recipe = chosen_inference(card, InferenceConfig(), as_in_recipe=True)
    assert from_recipe == InferenceConfig(flip=True, scales=(0.5, 1.0))
    assert (
        chosen_inference(make_card(), InferenceConfig(), as_in_recipe=True) == InferenceConfig()
    )  # older than the field
    crf = InferenceConfig(crf=DenseCRFConfig(iterations=5))
    assert chosen_inference(card, crf, as_in_recipe=True) == dataclasses.replace(from_recipe, crf=crf.crf)
    with pytest.raises(ValueError, match=r"--recipe-inference and --inference.* exclude each other, but for --inf"):
        chosen_inference(card, given, as_in_recipe=True)
    one_stride = dataclasses.replace(card, model_config=DFANetConfig(), recipe={"inference": {"output_stride": 8}})
    for given in (InferenceConfig(output_stride=8), InferenceConfig()):
        with pytest.raises(ValueError, match="'dfanet' has output stride 64 alone; leave out output stride 8"):
            chosen_inference(one_stride, given, as_in_recipe=not given.output_stride)


def test_a_classifier_s_folder_says_so_and_is_loaded_as_one(tmp_path: Path) -> None:
    config = ClassifierConfig(backbone="mobilenet_v3_small")
    card = dataclasses.replace(make_card(), model_config=config, palette=())
    classifier = build_network(config, 3).eval()
    uri = str(tmp_path / "classifier")
    save_model(uri, classifier, card)
    bundle = load_model(uri, task="classification")
    assert bundle.card == card and bundle.card.task == "classification"
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(bundle.model(images), classifier(images))
    with pytest.raises(ValueError, match="holds an image classifier, expected a segmentation network"):
        load_model(uri)
    assert read_card(uri, task=None)[0] == card
    with pytest.raises(ValueError, match="3 class names and 3 colours; give one colour per class, and none to a class"):
        dataclasses.replace(card, palette=make_card().palette)


def test_a_segmentation_network_is_no_classifier(folder: str) -> None:
    with pytest.raises(ValueError, match="holds a segmentation network, expected an image classifier"):
        load_model(folder, task="classification")
