"""Dilated front end and context module: published sizes, the identity at the start, the field of view."""

import pytest
import timm
import torch
from torch import Tensor, nn

from segcore.cost import count_parameters
from segcore.models import DilatedContextConfig, build_model, load_pretrained
from segcore.models.dilated import CONTEXT_DILATIONS, LARGE_WIDTHS, ContextModule, _continued


def parameters_of(config: DilatedContextConfig, num_classes: int) -> int:
    with torch.device("meta"):
        return count_parameters(build_model(config, num_classes)).total


def test_numbers_of_parameters() -> None:
    front_end = parameters_of(DilatedContextConfig(context="none"), 21)
    assert front_end == 134_346_581
    assert parameters_of(DilatedContextConfig(), 21) - front_end == 28_392
    assert parameters_of(DilatedContextConfig(context="large"), 21) - front_end == 6_803_139
    of_19_classes = parameters_of(DilatedContextConfig(context="none"), 19)
    assert parameters_of(DilatedContextConfig(), 19) - of_19_classes == 23_256


def small(**settings: object) -> DilatedContextConfig:
    return DilatedContextConfig(backbone="resnet18", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("layers", [8, 10])
@pytest.mark.parametrize("context", ["basic", "large"])
def test_without_noise_the_context_module_gives_back_non_negative_scores(context: str, layers: int) -> None:
    model = build_model(small(context=context, context_layers=layers, context_noise=0.0), 5)
    scores = torch.rand(2, 5, 13, 9)
    with torch.no_grad():
        found = model.get_submodule("head.classifier")(model.get_submodule("context")(scores))
    torch.testing.assert_close(found, scores)


def test_at_the_start_the_network_is_nearly_its_front_end() -> None:
    torch.manual_seed(0)
    model = build_model(small(), 5).eval()
    scores = torch.rand(1, 5, 24, 24)
    with torch.no_grad():
        found = model.get_submodule("head.classifier")(model.get_submodule("context")(scores))
    assert 0.001 < float((found - scores).abs().mean()) < 0.2


@pytest.mark.parametrize(("layers", "side"), [(8, 67), (10, 259)])
def test_an_impulse_spreads_over_the_whole_field_and_no_further(layers: int, side: int) -> None:
    dilations = CONTEXT_DILATIONS[layers]
    assert side == 1 + 2 * sum(dilations)
    module = ContextModule(1, widths=(1,) * len(dilations), dilations=dilations, noise=0.0).double()
    for layer in module.convolutions:
        assert isinstance(layer, nn.Conv2d)
        nn.init.constant_(layer.weight, 1 / 9)
    size = side + 4
    impulse = torch.zeros(1, 1, size, size, dtype=torch.float64)
    impulse[..., size // 2, size // 2] = 1
    with torch.no_grad():
        rows, columns = module(impulse)[0, 0].nonzero(as_tuple=True)
    assert (int(rows.min()), int(rows.max())) == (int(columns.min()), int(columns.max())) == (2, side + 1)


def test_the_large_module_has_the_published_widths() -> None:
    module = ContextModule(3, widths=LARGE_WIDTHS[8], dilations=CONTEXT_DILATIONS[8], noise=0.0)
    layers = [layer for layer in module.convolutions if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels // 3 for layer in layers] == [2, 2, 4, 8, 16, 32, 32]
    assert [layer.dilation[0] for layer in layers] == [1, 1, 2, 4, 8, 16, 1]


@pytest.mark.parametrize(("height", "width"), [(500, 512), (96, 131), (1, 7)])
def test_the_unpadded_front_end_has_one_score_for_every_8_pixels(height: int, width: int) -> None:
    """out = (in - 372) / 8: 16 scores for a crop of 500 pixels."""
    with torch.device("meta"):
        model = build_model(DilatedContextConfig(context="none"), 21).eval()
    assert not [layer for layer in model.modules() if isinstance(layer, nn.Conv2d) and layer.padding != (0, 0)]
    (scores,) = model.get_submodule("backbone")(torch.empty(1, 3, 500, 500, device="meta"))
    assert scores.shape == (1, 4096, 16, 16)
    continued = _continued(torch.empty(1, 3, height, width))
    (scores,) = model.get_submodule("backbone")(continued.to("meta"))
    assert scores.shape[2:] == (-(-height // 8), -(-width // 8))


def test_images_are_continued_by_reflection() -> None:
    image: Tensor = torch.arange(400.0)[None, None, None].expand(1, 1, 400, -1)
    expected = torch.nn.functional.pad(image, (186, 186, 186, 186), mode="reflect")
    assert torch.equal(_continued(image), expected)
    odd = _continued(image[..., :397])
    assert odd.shape[-1] == 186 + 400 + 186
    assert torch.equal(odd[0, 0, 0, -189 - 186 : -186][-4:], torch.tensor([396.0, 395, 394, 393]))
    assert torch.equal(_continued(image[..., :1]).unique(), torch.zeros(1))


def test_the_front_end_takes_the_whole_classifier() -> None:
    torch.manual_seed(0)
    state = timm.create_model("vgg16").state_dict()
    model = build_model(DilatedContextConfig(), 3)
    load_pretrained(model, state)
    found = model.state_dict()
    for ours, theirs in {
        "trunk.body.features.0": "features.0",
        "trunk.body.features.28": "features.28",
        "branches.0.fc6": "pre_logits.fc1",
        "branches.0.fc7": "pre_logits.fc2",
    }.items():
        assert torch.equal(found[f"backbone.{ours}.weight"], state[f"{theirs}.weight"])
        assert torch.equal(found[f"backbone.{ours}.bias"], state[f"{theirs}.bias"])


def test_settings_that_no_context_module_has_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown context 'huge'; known: none, basic, large"):
        small(context="huge")
    with pytest.raises(ValueError, match="context_layers is 9; it must be 8 or 10"):
        small(context_layers=9)
    with pytest.raises(ValueError, match="context_noise is -1; it must not be negative"):
        small(context_noise=-1)
