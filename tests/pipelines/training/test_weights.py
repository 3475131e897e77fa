"""Backbone weights from a file, from nowhere, and from a hub that cannot be reached; whole networks to start from."""

import dataclasses
from pathlib import Path

import pytest
import safetensors.torch
import torch

from pipelines.checkpoints import read_card
from pipelines.training.weights import resolve_weights, start_digest, weights_digest, whole_network
from segcore.backbones import build_backbone, load_backbone_weights
from segcore.classifier import ClassifierConfig
from segcore.models import DeepLabV3Config
from segcore.networks import NetworkConfig
from tests.pipelines.tiny_inputs import CLASS_NAMES, NETWORK, write_model

STATE = {"conv.weight": torch.arange(6.0).view(2, 3), "conv.bias": torch.zeros(2)}


def test_none_means_no_weights() -> None:
    assert resolve_weights("none", backbone="resnet18") is None


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_torch_file_is_read_without_unpickling_code(tmp_path: Path, wrapped: bool) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": STATE, "epoch": 3} if wrapped else STATE, path)
    loaded = resolve_weights(str(path), backbone="resnet18")
    assert loaded is not None and loaded.keys() == STATE.keys()
    assert torch.equal(loaded["conv.weight"], STATE["conv.weight"])


def test_a_safetensors_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(STATE, path)
    loaded = resolve_weights(str(path), backbone="resnet18")
    assert loaded is not None and torch.equal(loaded["conv.weight"], STATE["conv.weight"])


def test_a_missing_file_says_what_can_be_given(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no weights file at .*absent.pth.*--weights none"):
        resolve_weights(str(tmp_path / "absent.pth"), backbone="resnet18")


@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors"])
def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"not weights at all")
    with pytest.raises(ValueError, match=r"neither a .safetensors file nor a torch.save of plain tensors"):
        resolve_weights(str(path), backbone="resnet18")


def test_a_file_of_other_objects_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.pth"
    torch.save([1, 2, 3], path)
    with pytest.raises(ValueError, match="holds no state dict"):
        resolve_weights(str(path), backbone="resnet18")


def test_a_pickled_object_is_refused_unopened(tmp_path: Path) -> None:
    path = tmp_path / "code.pth"
    torch.save({"model": torch.nn.Linear(2, 2)}, path)
    with pytest.raises(ValueError, match="neither a .safetensors file"):
        resolve_weights(str(path), backbone="resnet18")


def test_a_failed_download_says_how_to_pass_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("timm.create_model", refuse)
    with pytest.raises(ValueError, match=r"could not download weights 'resnet18.tv_in1k' \(OSError: .*--weights FILE"):
        resolve_weights("timm", backbone="resnet18")


def test_a_backbone_that_timm_does_not_have_is_to_be_trained_as_a_classifier_first() -> None:
    with pytest.raises(
        ValueError, match=r"timm has no backbone 'dfanet_xception_a'.*classifier first, with one of this"
    ):
        resolve_weights("timm", backbone="dfanet_xception_a")


@pytest.mark.parametrize(("backbone", "network"), [("enet", "enet"), ("segnet_basic", "segnet"), ("unet", "unet")])
def test_an_encoder_that_belongs_to_one_network_is_no_classifier_s(backbone: str, network: str) -> None:
    with pytest.raises(
        ValueError, match=rf"for '{backbone}', the encoder of network '{network}' itself; .*--weights none"
    ):
        resolve_weights("timm", backbone=backbone)


def test_efficientnet_weights_beside_the_checkout_fill_the_backbone(weights_folder: Path) -> None:
    state = resolve_weights(str(weights_folder / "tf_efficientnet_lite0_imagenet1k.pth"), backbone="efficientnet_lite0")
    assert state is not None
    backbone = build_backbone("efficientnet_lite0", output_stride=32)
    load_backbone_weights(backbone, state)
    assert torch.equal(backbone.body.state_dict()["conv_stem.weight"], state["conv_stem.weight"])


def test_the_model_folder_of_a_segmentation_network_gives_its_backbone(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", seed=5)
    state = resolve_weights(folder, backbone="xception39")
    assert state is not None
    backbone = build_backbone("xception39", output_stride=16)
    load_backbone_weights(backbone, state)
    whole = safetensors.torch.load_file(tmp_path / "model" / "model.safetensors")
    for name, tensor in backbone.body.state_dict().items():
        assert torch.equal(tensor, whole[f"backbone.body.{name}"])
    digest = weights_digest(folder, backbone="xception39")
    assert digest == read_card(folder)[1]


def test_only_a_model_folder_has_a_digest(tmp_path: Path) -> None:
    safetensors.torch.save_file(STATE, tmp_path / "weights.safetensors")
    for weights in ("none", "timm", str(tmp_path / "weights.safetensors"), str(tmp_path / "absent")):
        assert weights_digest(weights, backbone="resnet18") is None


def test_a_model_on_another_backbone_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    for ask in (resolve_weights, weights_digest):
        with pytest.raises(ValueError, match=r"on backbone 'xception39', .* on 'resnet18'; give a model on"):
            ask(folder, backbone="resnet18")


def test_a_model_folder_that_changed_or_is_none_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="model.safetensors has changed since it was written"):
        resolve_weights(folder, backbone="xception39")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.json").write_text('{"kind": "prepared_dataset"}')
    with pytest.raises(ValueError, match="is a 'prepared_dataset', expected a 'model'"):
        resolve_weights(str(tmp_path / "data"), backbone="resnet18")
    with pytest.raises(ValueError, match=r"no weights file at .*or a model folder \(OUTPUT/NAME/model of a finished"):
        resolve_weights(str(tmp_path), backbone="resnet18")


def ask(
    folder: str,
    *,
    network: NetworkConfig = NETWORK,
    class_names: tuple[str, ...] = CLASS_NAMES,
    label_pca_digest: str | None = None,
) -> str:
    return start_digest(folder, network=network, class_names=class_names, label_pca_digest=label_pca_digest)


def test_a_model_folder_of_the_same_network_gives_all_of_it(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", seed=5)
    assert ask(folder) == read_card(folder)[1]
    state = whole_network(folder)
    whole = safetensors.torch.load_file(tmp_path / "model" / "model.safetensors")
    assert state.keys() == whole.keys() and all(torch.equal(state[name], whole[name]) for name in whole)


def test_a_whole_network_of_another_kind_or_for_other_data_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    with pytest.raises(ValueError, match=r"is a deeplab_v3plus on xception39, and .* a deeplab_v3 on xception39; give"):
        ask(folder, network=DeepLabV3Config(backbone="xception39"))
    with pytest.raises(ValueError, match=r"and this recipe trains a deeplab_v3plus on resnet18"):
        ask(folder, network=dataclasses.replace(NETWORK, backbone="resnet18"))
    with pytest.raises(ValueError, match="holds a segmentation network, expected an image classifier"):
        ask(folder, network=ClassifierConfig(backbone="xception39"))
    with pytest.raises(ValueError, match=r"was trained on 4 classes \(sky, .*\), and the dataset has 2 \(a, b\)"):
        ask(folder, class_names=("a", "b"))
    with pytest.raises(ValueError, match="another label PCA, which is a part of the network"):
        ask(folder, label_pca_digest="e" * 64)
