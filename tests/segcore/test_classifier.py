"""Backbones as classifiers: published sizes, timm's scores from timm's weights, weights that go on to segmentation."""

from typing import cast

import pytest
import timm
import torch
import torch.nn.functional as F

from segcore.backbones import Backbone, backbone_state, build_backbone, load_backbone_weights
from segcore.classifier import Classifier, ClassifierConfig, TextureEncoding
from segcore.cost import count_multiply_adds, count_parameters
from segcore.label_code import LabelCode
from segcore.models import DeepLabV3PlusConfig, DFANetConfig, load_pretrained
from segcore.networks import (
    build_network,
    label_pca_size,
    network_from_dict,
    network_to_dict,
    restore_network,
    task_of,
)

TINY = ClassifierConfig(backbone="mobilenet_v3_small")


def test_resnet50_has_the_published_size() -> None:
    with torch.device("meta"):
        network = Classifier(ClassifierConfig(backbone="resnet50"), 1000)
    assert count_parameters(network).total == 25_557_032
    assert count_multiply_adds(network, 224, 224) == 4_089_184_256


def test_with_timm_s_weights_the_scores_are_timm_s() -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("resnet18", num_classes=7).eval()
    state = theirs.state_dict()
    ours = Classifier(ClassifierConfig(backbone="resnet18"), 7).eval()
    assert isinstance(ours.backbone, Backbone)
    load_backbone_weights(ours.backbone, state)
    ours.fc.load_state_dict({name: state[f"fc.{name}"] for name in ("weight", "bias")})
    images = torch.randn(2, 3, 96, 65)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "parameters"), [("dfanet_xception_a", 354_008), ("dfanet_xception_b", 206_232)])
def test_a_trained_light_xception_fills_dfanet_with_its_last_layer(name: str, parameters: int) -> None:
    with torch.device("meta"):
        assert count_parameters(Classifier(ClassifierConfig(backbone=name), 1000)).total == parameters
    torch.manual_seed(0)
    classifier = Classifier(ClassifierConfig(backbone=name), 11)
    network = build_network(DFANetConfig(backbone=name, classifier_classes=11), 4)
    load_pretrained(network, backbone_state(classifier.state_dict()))
    found = network.state_dict()
    for encoder in range(3):
        attention = found[f"backbone.encoders.{encoder}.attention.fc.weight"]
        assert torch.equal(attention, classifier.fc.weight)
        block = f"backbone.encoders.{encoder}.stages.enc3.1.convs.0.pointwise.weight"
        assert torch.equal(found[block], classifier.state_dict()["backbone.stages.enc3.1.convs.0.pointwise.weight"])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_the_loss_is_the_cross_entropy_against_the_smoothed_target(smoothing: float) -> None:
    network = Classifier(ClassifierConfig(backbone="mobilenet_v3_small", label_smoothing=smoothing), 6)
    logits_NC = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)
    labels_N = torch.tensor([0, 5, 2, 2, 1])
    target_NC = (1 - smoothing) * F.one_hot(labels_N, 6) + smoothing / 6  # Szegedy et al. 2016, section 7
    expected = -(target_NC * logits_NC.log_softmax(dim=1)).sum(dim=1).mean()
    found = network.loss(logits_NC, labels_N.int())
    torch.testing.assert_close(found.total, expected)
    torch.testing.assert_close(found.total, F.cross_entropy(logits_NC, labels_N, label_smoothing=smoothing))
    assert list(found.terms) == ["cross_entropy"]
    found.total.backward()
    assert logits_NC.grad is not None


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "efficientnet_lite0"])
def test_a_classifier_s_weights_fill_a_backbone_and_its_last_layer_is_left_over(name: str) -> None:
    network = Classifier(ClassifierConfig(backbone=name), 5)
    state = backbone_state(network.state_dict())
    assert {"fc.weight", "fc.bias"} < state.keys()
    backbone = build_backbone(name, output_stride=16)
    load_backbone_weights(backbone, state)
    for tensor_name, tensor in backbone.body.state_dict().items():
        assert torch.equal(tensor, state[tensor_name])
    assert len(state) == len(backbone.body.state_dict()) + 2


def test_a_segmentation_network_s_state_gives_its_backbone_alone() -> None:
    network = build_network(DeepLabV3PlusConfig(backbone="resnet18", aspp_channels=8, decoder_channels=8), 3)
    state = backbone_state(network.state_dict())
    assert state.keys() == network.get_submodule("backbone.body").state_dict().keys()


def test_a_backbone_without_a_body_keeps_its_own_names() -> None:
    assert backbone_state({"backbone.enc2.0.weight": torch.ones(1), "head.weight": torch.ones(1)}).keys() == {
        "enc2.0.weight"
    }


def test_momentum_and_dropout_are_set_and_the_last_layer_starts_small() -> None:
    network = Classifier(ClassifierConfig(backbone="resnet18", dropout=0.3, batch_norm_momentum=0.5), 50)
    momenta = {each.momentum for each in network.modules() if isinstance(each, torch.nn.BatchNorm2d)}
    assert momenta == {0.5} and network.dropout.p == 0.3
    assert 0.008 < float(network.fc.weight.detach().std()) < 0.012 and not network.fc.bias.any()


def test_a_classifier_is_stored_and_restored_like_any_network() -> None:
    config = ClassifierConfig(backbone="mobilenet_v3_small", dropout=0.2)
    assert network_from_dict(network_to_dict(config)) == config
    assert network_to_dict(config)["network"] == "classifier"
    deeplab = DeepLabV3PlusConfig(backbone="resnet18")
    assert network_from_dict(network_to_dict(deeplab)) == deeplab
    assert (task_of(config), task_of(deeplab), label_pca_size(config)) == ("classification", "segmentation", None)
    network = build_network(config, 3)
    again = restore_network(config, 3, network.state_dict())
    assert not again.training
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in network.state_dict().items())


def test_deep_ten_has_the_layers_of_the_paper() -> None:
    """ResNet-50 without its last layer, 2048 -> 128, 32 codewords of 128 with a factor each, 4096 -> 23."""
    with torch.device("meta"):
        network = Classifier(ClassifierConfig(num_codewords=32), 23)
    trunk = 25_557_032 - 2049 * 1000
    assert count_parameters(network).total == trunk + 2048 * 128 + 2 * 128 + 32 * 129 + 4097 * 23 == 23_868_791
    assert not [name for name, _ in network.named_parameters() if name.split(".")[0] not in ("backbone", "pool", "fc")]


def texture_network(num_codewords: int) -> Classifier:
    torch.manual_seed(0)
    config = ClassifierConfig(backbone="mobilenet_v3_small", num_codewords=num_codewords, encoded_channels=6)
    return Classifier(config, 4).eval()


def test_deep_ten_classifies_the_normalised_residuals_of_any_map() -> None:
    network = texture_network(3)
    features = []
    network.backbone.register_forward_hook(lambda _module, _inputs, output: features.append(output[32]))
    pool = cast(TextureEncoding, network.pool)
    for height, width in ((64, 96), (33, 65)):
        images = torch.randn(2, 3, height, width)
        with torch.no_grad():
            logits = network(images)
            x_NLK = pool.reduce(features.pop()).flatten(2).transpose(1, 2)
            residuals_NLQK = x_NLK[:, :, None] - pool.encoding.codewords_QK
            shares_NLQ = (pool.encoding.smoothing_Q * residuals_NLQK.square().sum(dim=3)).softmax(dim=2)
            vector = (shares_NLQ[..., None] * residuals_NLQK).sum(dim=1).flatten(1)
            expected = network.fc(vector / vector.norm(dim=1, keepdim=True))
        assert logits.shape == (2, 4)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-6)


def test_one_codeword_is_the_direction_of_the_sum() -> None:
    pool = cast(TextureEncoding, texture_network(1).pool)
    x = torch.randn(2, pool.reduce.conv.in_channels, 3, 4)
    with torch.no_grad():
        sums = pool.reduce(x).sum(dim=(2, 3)) - 12 * pool.encoding.codewords_QK
        torch.testing.assert_close(pool(x), sums / sums.norm(dim=1, keepdim=True))
        torch.testing.assert_close(pool(x.flip(3).transpose(2, 3)), pool(x))


def test_every_parameter_of_deep_ten_learns() -> None:
    network = texture_network(3).train()
    network.loss(network(torch.randn(2, 3, 64, 64)), torch.tensor([0, 3])).total.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


def test_deep_ten_fills_a_segmentation_network_s_backbone_alone() -> None:
    network = texture_network(3)
    deeplab = build_network(DeepLabV3PlusConfig(backbone="mobilenet_v3_small"), 3)
    load_pretrained(deeplab, backbone_state(network.state_dict()))
    body = {name.removeprefix("backbone.") for name in network.state_dict() if name.startswith("backbone.")}
    for name in body:
        assert torch.equal(deeplab.state_dict()[f"backbone.{name}"], network.state_dict()[f"backbone.{name}"])


def test_classifiers_without_codewords_are_stored_as_they_always_were() -> None:
    assert network_to_dict(TINY).keys() == {
        "network", "backbone", "dropout", "label_smoothing", "batch_norm_momentum"
    }  # fmt: skip
    texture = ClassifierConfig(backbone="resnet18", num_codewords=8, encoded_channels=16)
    assert network_from_dict(network_to_dict(texture)) == texture
    again = restore_network(texture, 3, Classifier(texture, 3).state_dict())
    assert isinstance(again, Classifier) and again.fc.in_features == 128


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="num_codewords is -1 and encoded_channels 128; expected 0 or more"):
        ClassifierConfig(num_codewords=-1)
    with pytest.raises(ValueError, match="weights do not fit a classifier of 4 classes on 'mobilenet_v3_small'"):
        restore_network(TINY, 4, Classifier(TINY, 3).state_dict())
    with pytest.raises(ValueError, match="unknown field.s. depth of a classifier; known: backbone, dropout"):
        network_from_dict({"network": "classifier", "depth": 3})
    with pytest.raises(ValueError, match="unknown backbone 'resnet51'; known: "):
        ClassifierConfig(backbone="resnet51")
    with pytest.raises(ValueError, match=r"'unet' is no backbone that classifies images; known: resnet18, (?!.*unet)"):
        ClassifierConfig(backbone="unet")
    with pytest.raises(ValueError, match=r"label_smoothing 1.0 .*expected \[0, 1\), \[0, 1\) and \(0, 1\]"):
        ClassifierConfig(label_smoothing=1.0)
    with pytest.raises(ValueError, match="num_classes is 0; expected at least 1"):
        Classifier(TINY, 0)
    with pytest.raises(ValueError, match="an image classifier has no use for a label PCA"):
        build_network(TINY, 2, label_pca=cast(LabelCode, object()))
