"""Backbones: features by stride, dilation in place of stride, published sizes, pre-trained weights."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from segcore.backbones import BACKBONES, Backbone, build_backbone, load_backbone_weights
from segcore.cost import count_multiply_adds, count_parameters, module_multiply_adds
from tests.segcore.batch_norm import randomise_statistics

GENERAL = [name for name, spec in BACKBONES.items() if spec.last_stride == 32]
"""Those that `build_backbone` builds; tests of the others are in `test_light_xception.py`."""
TIMMS = [name for name in GENERAL if BACKBONES[name].timm_name is not None]


def on_meta(name: str, *, output_stride: int = 32, in_channels: int = 3) -> Backbone:
    with torch.device("meta"):
        return build_backbone(name, output_stride=output_stride, in_channels=in_channels)


def without_gates(backbone: Backbone) -> Backbone:
    """Replace squeeze-and-excitation by identity."""
    for name, module in list(backbone.named_modules()):
        if type(module).__name__ == "SqueezeExcite":
            parent, _, leaf = name.rpartition(".")
            setattr(backbone.get_submodule(parent), leaf, nn.Identity())
    return backbone


@pytest.mark.parametrize("name", GENERAL)
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_features_have_their_strides_and_channels(name: str, output_stride: int) -> None:
    backbone = on_meta(name, output_stride=output_stride).eval()
    features = backbone(torch.empty(1, 3, 65, 98, device="meta"))
    assert list(features) == [2, 4, 8, 16, 32]
    for stride, feature in features.items():
        real = min(stride, output_stride)
        assert backbone.feature_strides[stride] == real
        assert feature.shape == (1, backbone.channels[stride], -(-65 // real), -(-98 // real))


def test_features_at_513_have_the_published_sizes() -> None:
    images = torch.empty(1, 3, 513, 513, device="meta")
    for output_stride, side in ((32, 17), (16, 33), (8, 65)):
        features = on_meta("resnet50", output_stride=output_stride).eval()(images)
        assert features[4].shape == (1, 256, 129, 129)
        assert features[32].shape == (1, 2048, side, side)


# Small relatives (ResNet-18 for 34; deep stems share everything after the stem) keep this within seconds.
@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "resnet50",
        "mobilenet_v2",
        "mobilenet_v3_small",
        "mobilenet_v3_large",
        "efficientnet_lite0",
        "vgg16",
        "vgg16_bn",
        "xception39",
        pytest.param("xception71", marks=pytest.mark.slow),
        pytest.param("resnet101_deep", marks=pytest.mark.slow),
        pytest.param("xception41", marks=pytest.mark.slow),
        pytest.param("xception65", marks=pytest.mark.slow),
        pytest.param("efficientnet_lite2", marks=pytest.mark.slow),
    ],
)
def test_dilation_in_place_of_stride_keeps_the_features(name: str) -> None:
    """Features at 16 and 8, subsampled, equal those at 32: the first dilated block keeps the old rate."""
    torch.manual_seed(0)
    reference = build_backbone(name, output_stride=32).eval()
    randomise_statistics(reference)
    state = reference.state_dict()
    without_gates(reference)
    for output_stride in (16, 8):
        dense = on_meta(name, output_stride=output_stride).eval()
        dense.load_state_dict(state, assign=True)
        without_gates(dense)
        for size in ((33, 65), (64, 40)):
            images = torch.randn(1, 3, *size)  # float32: depthwise convolutions in float64 take minutes
            with torch.no_grad():
                coarse, feature = reference(images)[32], dense(images)[32]
            factor = 32 // output_stride
            row, column = (first_sample(length, output_stride, name) for length in size)
            sampled = feature[..., row::factor, column::factor]
            assert sampled.shape == coarse.shape
            torch.testing.assert_close(sampled, coarse, rtol=0, atol=2e-5 * float(coarse.abs().max()))


@pytest.mark.parametrize("name", GENERAL)
def test_weights_of_one_output_stride_have_the_names_and_shapes_of_another(name: str) -> None:
    """In particular Xception-71's at 8, where timm leaves out the projection of a block that lost its stride."""
    at_32, *others = (
        {key: tensor.shape for key, tensor in on_meta(name, output_stride=stride).state_dict().items()}
        for stride in (32, 16, 8)
    )
    for other in others:
        assert other == at_32


def first_sample(length: int, output_stride: int, name: str) -> int:
    """Where the coarse grid starts in the dense one: with "same" padding, a stride on an even map starts at 1."""
    if not BACKBONES[name].same_padding:
        return 0
    first, step, stride = 0, 1, output_stride
    while stride < 32:
        if -(-length // stride) % 2 == 0:
            first += step
        step, stride = step * 2, stride * 2
    return first


def test_a_dilated_first_block_would_be_noticed() -> None:
    """The common mistake (the first block takes the new rate too) is far outside the tolerance above."""
    torch.manual_seed(0)
    images = torch.randn(1, 3, 65, 65)
    backbone = build_backbone("resnet18", output_stride=16).eval()
    randomise_statistics(backbone)
    first = backbone.get_submodule("body.layer4.0.conv1")
    assert isinstance(first, nn.Conv2d)
    with torch.no_grad():
        right = backbone(images)[32]
        first.dilation, first.padding = (2, 2), (2, 2)
        wrong = backbone(images)[32]
    assert float((right - wrong).abs().max() / right.abs().max()) > 0.01


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet50", 23_508_032),
        ("resnet101", 42_500_160),
        ("resnet101_deep", 42_623_936),
        ("xception65", 37_867_312),
        ("xception41", 24_920_560),
        ("vgg16", 14_714_688),
    ],
)
def test_trunks_have_the_published_number_of_parameters(name: str, expected: int) -> None:
    for output_stride in (8, 32):
        assert count_parameters(on_meta(name, output_stride=output_stride)).total == expected


def test_xception65_costs_what_was_counted_for_the_specification() -> None:
    images = torch.empty(1, 3, 513, 513, device="meta")
    assert module_multiply_adds(on_meta("xception65", output_stride=16), images) == pytest.approx(48.570e9, rel=1e-5)
    assert count_multiply_adds(on_meta("xception65", output_stride=8), 513, 513) == pytest.approx(163.609e9, rel=1e-5)


def test_xception_is_deeplabs_aligned_one() -> None:
    backbone = on_meta("xception65")
    assert not [module for module in backbone.modules() if isinstance(module, nn.MaxPool2d)]
    assert {module.eps for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)} == {1e-3}
    assert backbone.channels == {2: 128, 4: 256, 8: 728, 16: 728, 32: 2048}


def test_deep_stem_feature_of_stride_2_has_128_channels() -> None:
    assert on_meta("resnet50_deep").channels[2] == 128


def test_other_numbers_of_input_channels_are_possible() -> None:
    features = on_meta("resnet18", in_channels=5).eval()(torch.empty(1, 5, 64, 64, device="meta"))
    assert features[32].shape == (1, 512, 2, 2)


@pytest.mark.parametrize("name", TIMMS)
def test_catalogue_agrees_with_timm_on_normalisation(name: str) -> None:
    spec = BACKBONES[name]
    assert spec.timm_name is not None
    published = timm.get_pretrained_cfg(spec.timm_name)
    assert published is not None
    assert (tuple(published.mean), tuple(published.std)) == (spec.mean, spec.std)


@pytest.mark.parametrize("name", TIMMS)
def test_state_dict_of_timms_classifier_fits(name: str) -> None:
    """Names and shapes of the whole classifier, for every backbone; values for one of each kind below."""
    with torch.device("meta"):
        classifier = timm.create_model(BACKBONES[name].architecture).state_dict()
    body = on_meta(name, output_stride=16).body.state_dict()
    assert {key: value.shape for key, value in body.items()}.items() <= {
        key: value.shape for key, value in classifier.items()
    }.items()
    assert all(key in body or key.startswith(BACKBONES[name].classifier_prefixes) for key in classifier)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "efficientnet_lite0"])
def test_loaded_backbone_computes_what_timms_classifier_computes(name: str) -> None:
    torch.manual_seed(0)
    classifier = timm.create_model(BACKBONES[name].architecture, num_classes=0, global_pool="").eval()
    state = {key: value for key, value in classifier.state_dict().items() if not key.endswith("num_batches_tracked")}
    backbone = build_backbone(name, output_stride=32).eval()
    load_backbone_weights(backbone, state)
    images = torch.randn(1, 3, 65, 64)
    with torch.no_grad():
        expected = classifier.forward_intermediates(images, intermediates_only=True)
        found = backbone(images)
    for ours, timms in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(ours, timms)


def torchvision_features(model: torchvision.models.MobileNetV2, images: Tensor) -> dict[int, Tensor]:
    """Outputs of the last blocks of each stride."""
    features: dict[int, Tensor] = {}
    x = images
    for index, block in enumerate(model.features[:-1]):
        x = block(x)
        if index in (1, 3, 6, 13, 17):
            features[2 ** (1 + len(features))] = x
    return features


def assert_equal_features(state: dict[str, Tensor]) -> None:
    """A torchvision MobileNetV2 and our backbone, filled from `state`, give the same features."""
    theirs = torchvision.models.mobilenet_v2().eval()
    theirs.load_state_dict(state, strict=False)
    ours = build_backbone("mobilenet_v2", output_stride=32).eval()
    load_backbone_weights(ours, state)
    images = torch.randn(1, 3, 96, 65)
    with torch.no_grad():
        expected = torchvision_features(theirs, images)
        found = ours(images)
    assert list(found) == list(expected)
    for stride in expected:
        torch.testing.assert_close(found[stride], expected[stride])


def test_torchvisions_names_of_mobilenet_v2_are_understood() -> None:
    torch.manual_seed(0)
    assert_equal_features(torchvision.models.mobilenet_v2().state_dict())


def test_shared_mobilenet_v2_file_loads(weights_folder: Path) -> None:
    assert_equal_features(torch.load(weights_folder / "mobilenet_v2_features_imagenet1k.pth", weights_only=True))


def test_shared_efficientnet_lite0_file_loads(weights_folder: Path) -> None:
    state = torch.load(weights_folder / "tf_efficientnet_lite0_imagenet1k.pth", weights_only=True)
    backbone = build_backbone("efficientnet_lite0", output_stride=16)
    load_backbone_weights(backbone, state)
    assert torch.equal(backbone.body.state_dict()["conv_stem.weight"], state["conv_stem.weight"])


def test_weights_that_do_not_fit_are_refused_and_change_nothing() -> None:
    backbone = build_backbone("resnet18", output_stride=32)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    good = {name: torch.zeros_like(value) for name, value in backbone.body.state_dict().items()}

    missing = {name: value for name, value in good.items() if name != "layer2.0.conv1.weight"}
    with pytest.raises(ValueError, match="1 missing: layer2.0.conv1.weight.*timm's 'resnet18'"):
        load_backbone_weights(backbone, missing)
    with pytest.raises(ValueError, match=r"of another shape: conv1.weight \(1, 3\) instead of \(64, 3, 7, 7\)"):
        load_backbone_weights(backbone, good | {"conv1.weight": torch.zeros(1, 3)})
    with pytest.raises(ValueError, match="1 without a place: layer4.2.conv1.weight"):
        load_backbone_weights(backbone, good | {"layer4.2.conv1.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"missing: conv1.weight, .* \(\d+ more\)"):
        load_backbone_weights(backbone, {})
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_unknown_names_and_output_strides_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown backbone 'resnet5'; known: resnet18, .*xception65"):
        build_backbone("resnet5", output_stride=16)
    with pytest.raises(ValueError, match="output stride 4 is not one of"):
        build_backbone("resnet18", output_stride=4)
