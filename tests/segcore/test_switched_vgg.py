"""VGG-16 with switches: torchvision's features, what was pooled, and weights of classifiers with and without BN."""

from collections import OrderedDict
from itertools import pairwise

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from segcore.backbones import SwitchedVGG, backbone_state, vgg
from segcore.models import SegNetConfig, build_model
from tests.segcore.batch_norm import randomise_statistics

NARROW = 16
FC = 8


def torchvision_features(*, batch_norm: bool) -> nn.Module:
    layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"], batch_norm=batch_norm)
    return nn.Sequential(OrderedDict(features=layers)).eval()


def narrow_classifier(generator: torch.Generator) -> nn.Module:
    """A plain VGG-16 of 1 / 16 of the width and fc layers of 8 channels, in torchvision's names."""
    plan = [width if isinstance(width, str) else width // NARROW for width in torchvision.models.vgg.cfgs["D"]]
    classifier = nn.Sequential(
        nn.Linear(32 * 49, FC), nn.ReLU(), nn.Dropout(), nn.Linear(FC, FC), nn.ReLU(), nn.Dropout(), nn.Linear(FC, 3)
    )
    network = nn.Sequential(
        OrderedDict(features=torchvision.models.vgg.make_layers(plan), flatten=nn.Flatten(), classifier=classifier)
    )
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=(2 / parameter[0].numel()) ** 0.5, generator=generator)
    return network.eval()


@pytest.mark.parametrize("batch_norm", [True, False])
def test_the_last_map_and_the_pools_are_torchvision_s(batch_norm: bool) -> None:
    torch.manual_seed(0)
    theirs = torchvision_features(batch_norm=batch_norm)
    randomise_statistics(theirs)
    ours = SwitchedVGG("vgg16_bn" if batch_norm else "vgg16")
    ours.load_classifier(theirs.state_dict())
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found, poolings = ours.eval()(images)
        expected = theirs(images)
    # Without normalisation of its own, each layer's is x / sqrt(1 + 1e-5).
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert [(each.height, each.width) for each in poolings] == [(64, 96), (32, 48), (16, 24), (8, 12), (4, 6)]
    assert [each.switches_NKhw.shape[1] for each in poolings] == [64, 128, 256, 512, 512]


def test_fc6_and_fc7_are_the_classifier_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that stands before the last layer, in small: an image of 224 pixels gives one location."""
    monkeypatch.setattr(vgg, "FULLY_CONNECTED_CHANNELS", FC)
    monkeypatch.setattr(vgg, "VGG16_CHANNELS", (8, 16, 32, 32, 32))
    theirs = narrow_classifier(torch.Generator().manual_seed(0))
    ours = SwitchedVGG("vgg16", width_divisor=NARROW, fc_channels=FC)
    ours.load_classifier(theirs.state_dict())
    images = torch.randn(2, 3, 224, 224)
    classifier = theirs.get_submodule("classifier")
    assert isinstance(classifier, nn.Sequential)
    with torch.no_grad():
        found, _ = ours.eval()(images)
        expected = classifier[:5](theirs.get_submodule("features")(images).flatten(1))
    assert found.shape == (2, FC, 1, 1)
    assert bool(expected.any())
    torch.testing.assert_close(found.flatten(1), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn"])
@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_names_and_shapes_of_published_classifiers_fit(name: str, source: str) -> None:
    with torch.device("meta"):
        build = timm.create_model if source == "timm" else torchvision.models.get_model
        state: dict[str, Tensor] = build(name).state_dict()
        SwitchedVGG(name).load_classifier(state)
        SwitchedVGG(name, fc_channels=4096).load_classifier(state)


def test_normalisation_that_the_classifier_has_not_keeps_its_values() -> None:
    ours = SwitchedVGG("vgg16", width_divisor=NARROW)
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, 0.25)
    ours.load_classifier(narrow_classifier(torch.Generator().manual_seed(0)).state_dict())
    norms = [module for module in ours.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 13 and all(bool((norm.bias == 0.25).all()) for norm in norms)


def test_the_backbone_of_another_network_fits() -> None:
    torch.manual_seed(0)
    network = build_model(SegNetConfig(width=0.0625), 3)
    ours = SwitchedVGG("vgg16_bn", width_divisor=NARROW)
    ours.load_classifier(backbone_state(network.state_dict()))
    theirs = network.get_submodule("backbone").state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.state_dict().items())
    whole = SwitchedVGG("vgg16_bn", width_divisor=NARROW, fc_channels=FC, fc6_side=2)
    again = SwitchedVGG("vgg16_bn", width_divisor=NARROW, fc_channels=FC, fc6_side=2)
    again.load_classifier(whole.state_dict())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


def test_weights_that_do_not_fit_are_refused_and_change_nothing() -> None:
    state = narrow_classifier(torch.Generator().manual_seed(0)).state_dict()
    ours = SwitchedVGG("vgg16")
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    with pytest.raises(ValueError, match=r"backbone 'vgg16'; tensors 26 of another shape: features.0.weight .*VGG-16 "):
        ours.load_classifier(state)
    with pytest.raises(ValueError, match="missing: features.0.weight"):
        ours.load_classifier({"features.conv0.weight": torch.zeros(1), "classifier.weight": torch.zeros(1)})
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
    with pytest.raises(ValueError, match=r"neither timm's pre_logits.fc1 and fc2 nor torchvision's"):
        SwitchedVGG("vgg16", width_divisor=NARROW, fc_channels=FC).load_classifier(
            {name: value for name, value in state.items() if name.startswith("features.")}
        )


def test_widths_are_divided() -> None:
    ours = SwitchedVGG("vgg16", width_divisor=NARROW)
    assert ours.stages == ((4, 2), (8, 2), (16, 3), (32, 3), (32, 3))
    convolutions = [layer for layer in ours.features if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 13
    assert all(before.out_channels == after.in_channels for before, after in pairwise(convolutions))


def test_one_image_in_training_is_refused_where_fc6_leaves_one_location() -> None:
    ours = SwitchedVGG("vgg16", width_divisor=NARROW, fc_channels=FC, fc6_side=2).train()
    with pytest.raises(ValueError, match="fc6 of VGG-16 was given a training batch of 1 image"):
        ours(torch.randn(1, 3, 64, 64))
    assert ours(torch.randn(2, 3, 64, 64))[0].shape == (2, FC, 1, 1)
