"""U-Net: published sizes, the sizes without padding, and what its parts must satisfy."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore import IGNORE_INDEX
from segcore.backbones import BACKBONES, Backbone, backbone_state
from segcore.cost import count_multiply_adds, count_parameters, module_multiply_adds
from segcore.models import BackboneUNetConfig, ModelConfig, UNetConfig, build_model, load_pretrained, meta_model
from segcore.models.unet import Encoder, UNet, UpBlock, initialise, valid_side

PAPER = UNetConfig()
NORMALISED = UNetConfig(batch_norm=True, padded=True)
NARROW = UNetConfig(width=4)


def narrow(config: UNetConfig = NARROW, num_classes: int = 3) -> UNet:
    torch.manual_seed(0)
    model = build_model(config, num_classes).eval()
    assert isinstance(model, UNet)
    return model


@pytest.mark.parametrize(
    ("config", "num_classes", "expected"),
    [
        (PAPER, 2, 31_031_810),
        (PAPER, 21, 31_033_045),
        (replace(PAPER, padded=True), 21, 31_033_045),
        (NORMALISED, 2, 31_037_698),
        (BackboneUNetConfig(), 21, 72_189_013),
        (BackboneUNetConfig(backbone="efficientnet_lite0"), 11, 4_046_179),
    ],
)
def test_number_of_parameters(config: ModelConfig, num_classes: int, expected: int) -> None:
    assert count_parameters(meta_model(config, num_classes)).total == expected


def test_on_grey_images_it_has_the_published_size() -> None:
    model = meta_model(PAPER, 2)
    with torch.device("meta"):
        model.set_submodule("backbone", Encoder(64, in_channels=1, padded=False, batch_norm=False))
    assert count_parameters(model).total == 31_030_658


def test_the_paper_s_tile_of_572_pixels_gives_388() -> None:
    model = meta_model(PAPER, 2)
    assert isinstance(model, UNet)
    tile = torch.empty(1, 3, 572, 572, device="meta")
    features = model.backbone(tile)
    assert [tuple(each.shape[1:]) for each in features.values()] == [
        (64, 568, 568),
        (128, 280, 280),
        (256, 136, 136),
        (512, 64, 64),
        (1024, 28, 28),
    ]
    assert model.valid_scores(tile).shape == (1, 2, 388, 388)
    assert not [layer for layer in model.modules() if isinstance(layer, nn.Conv2d) and layer.padding != (0, 0)]


@pytest.mark.parametrize(
    ("config", "num_classes", "height", "width", "expected"),
    [
        (PAPER, 2, 388, 388, 150.802709),
        (NORMALISED, 19, 512, 1024, 385.943077),
        (BackboneUNetConfig(), 21, 512, 512, 141.251576),
    ],
)
def test_multiply_adds(config: ModelConfig, num_classes: int, height: int, width: int, expected: float) -> None:
    model = meta_model(config, num_classes)
    assert count_multiply_adds(model, height, width) / 1e9 == pytest.approx(expected, rel=1e-5)


def test_an_image_of_388_pixels_costs_one_tile_of_the_paper() -> None:
    """By hand: 9 times inputs times outputs times the map's area, 4 for the transposed convolutions' four outputs."""
    model = meta_model(PAPER, 2)
    side, total, before = 572, 0, 3
    for width in (64, 128, 256, 512, 1024):
        total += 9 * before * width * (side - 2) ** 2 + 9 * width * width * (side - 4) ** 2
        side, before = (side - 4) // 2, width
    side = 28
    for width in (512, 256, 128, 64):
        total += 2 * width * width * 4 * side**2
        total += 9 * 2 * width * width * (2 * side - 2) ** 2 + 9 * width * width * (2 * side - 4) ** 2
        side = 2 * side - 4
    assert side == 388
    assert count_multiply_adds(model, 388, 388) == total + 64 * 2 * side**2
    assert isinstance(model, UNet)
    assert module_multiply_adds(model, torch.empty(1, 3, 380, 388, device="meta")) == total + 64 * 2 * side**2


@pytest.mark.parametrize("length", [1, 3, 4, 5, 64, 97, 387, 388, 389, 1024])
def test_inputs_without_padding_are_as_small_as_they_can_be(length: int) -> None:
    side = valid_side(length)
    assert side % 16 == 60 % 16 and side - 184 >= length and side >= 188
    assert side == 188 or side - 16 - 184 < length


@pytest.mark.parametrize(("height", "width"), [(188, 204), (220, 188)])
def test_without_padding_scores_are_those_of_the_inner_pixels(height: int, width: int) -> None:
    model = narrow()
    images = torch.randn(1, 3, height, width)
    with torch.no_grad():
        scores = model.valid_scores(images)
        assert scores.shape == (1, 3, height - 184, width - 184)
        changed = images.clone()
        changed[..., 92 + 1, 92 + 2] += 10
        rows, columns = (model.valid_scores(changed) != scores)[0].any(dim=0).nonzero(as_tuple=True)
    assert 1 in rows.tolist() and 2 in columns.tolist()


def test_an_image_is_scored_as_the_middle_of_its_mirrored_surroundings() -> None:
    model = narrow()
    images = torch.randn(1, 3, 132, 148)
    surrounded = F.pad(images, (92, 92, 92, 92), mode="reflect")
    assert surrounded.shape[2:] == (316, 332)
    with torch.no_grad():
        torch.testing.assert_close(model(images).logits_NCHW, model.valid_scores(surrounded))
        cut = images[..., :127, :135]
        expected = model.valid_scores(F.pad(cut, (92, 105, 92, 97), mode="reflect"))
        torch.testing.assert_close(model(cut).logits_NCHW, expected[..., :127, :135])


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (7, 3)])
@pytest.mark.parametrize("padded", [False, True])
def test_images_smaller_than_the_border_are_scored_too(padded: bool, size: tuple[int, int]) -> None:
    model = narrow(UNetConfig(width=4, padded=padded))
    with torch.no_grad():
        scores = model(torch.randn(2, 3, *size)).logits_NCHW
    assert scores.shape == (2, 3, *size) and scores.isfinite().all()


@pytest.mark.parametrize("size", [(572, 573), (571, 572), (172, 188), (92, 92)])
def test_other_sizes_without_padding_are_refused(size: tuple[int, int]) -> None:
    model = meta_model(NARROW, 3)
    assert isinstance(model, UNet)
    with pytest.raises(ValueError, match=rf"images are {size[0]} x {size[1]} pixels; .*16 b \+ 60, at least 188"):
        model.valid_scores(torch.empty(1, 3, *size, device="meta"))
    padded = meta_model(replace(NARROW, padded=True), 3)
    assert isinstance(padded, UNet)
    with pytest.raises(ValueError, match="a padded U-Net scores every pixel"):
        padded.valid_scores(torch.empty(1, 3, 572, 572, device="meta"))


def test_away_from_the_border_padding_changes_nothing() -> None:
    """An input cut by 2 rows has its pools at all levels where the padded network has them."""
    model, padded = narrow(), narrow(replace(NARROW, padded=True))
    padded.load_state_dict(model.state_dict())
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        scores, expected = padded(images).logits_NCHW, model.valid_scores(images[..., 2:-2, 2:-2])
    assert scores.shape == (1, 3, 224, 224) and expected.shape == (1, 3, 36, 36)
    torch.testing.assert_close(scores[..., 94:130, 94:130], expected)
    assert not torch.allclose(scores[..., 92:128, 92:128], expected)


def test_the_skip_is_cut_at_its_centre_and_comes_first() -> None:
    block = UpBlock(4, 3, padded=False, batch_norm=False)
    x, skip = torch.randn(1, 4, 5, 6), torch.randn(1, 3, 16, 20)
    with torch.no_grad():
        expected = block.fuse(torch.cat([skip[..., 3:13, 4:16], block.up(x)], dim=1))
        assert torch.equal(block(x, skip), expected)
    assert expected.shape == (1, 2, 6, 8)
    up = block.up.weight.detach()
    by_hand = torch.einsum("nkhw,kjab->njhawb", x, up).reshape(1, 2, 10, 12) + block.up.bias.detach()[:, None, None]
    torch.testing.assert_close(block.up(x).detach(), by_hand)


def test_initial_weights_have_hes_deviation() -> None:
    torch.manual_seed(0)
    block = UpBlock(128, 64, padded=False, batch_norm=False)
    first = block.get_submodule("fuse.0")
    initialise(block)
    assert float(block.up.weight.detach().std()) == pytest.approx((2 / 128) ** 0.5, rel=0.02)
    assert isinstance(first, nn.Conv2d)
    assert float(first.weight.detach().std()) == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    assert block.up.bias is not None and first.bias is not None
    assert not block.up.bias.any() and not first.bias.any()


def test_dropout_comes_at_the_end_of_the_encoder_alone() -> None:
    model = narrow(UNetConfig(width=4, padded=True, dropout=0.9)).train()
    first, second = (model.backbone(torch.ones(1, 3, 64, 64)) for _ in range(2))
    for stride in (1, 2, 4, 8):
        assert torch.equal(first[stride], second[stride])
    assert not torch.equal(first[16], second[16])


def weighed(model: nn.Module, labels: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    output = model(torch.randn(*labels.shape[:1], 3, *labels.shape[1:], generator=torch.Generator().manual_seed(1)))
    terms = model.loss(output, labels)
    return terms.total, terms.terms, output.logits_NCHW


def test_pixels_between_objects_count_more() -> None:
    """w(x) = 1 + 10 exp(-(d1 + d2)^2 / 50) between two squares 4 pixels apart, on background."""
    labels = torch.zeros(1, 20, 32, dtype=torch.uint8)
    labels[0, 5:15, 4:14] = labels[0, 5:15, 18:28] = 1
    labels[0, 0] = IGNORE_INDEX
    plain = narrow()
    weighted = narrow(replace(NARROW, border_weight=10.0, border_background=0))
    with torch.no_grad():
        total, terms, logits = weighed(weighted, labels)
        unweighted, only, same = weighed(plain, labels)
    assert torch.equal(logits, same) and set(only) == {"cross_entropy"} and set(terms) == {"cross_entropy", "border"}
    torch.testing.assert_close(terms["cross_entropy"], unweighted)
    columns = torch.arange(32)[None].float()
    rows = torch.arange(20)[:, None].float()
    down = (5 - rows).clamp(min=0) + (rows - 14).clamp(min=0)
    left, right = (
        (down**2 + ((start - columns).clamp(min=0) + (columns - start - 9).clamp(min=0)) ** 2).sqrt()
        for start in (4, 18)
    )
    weights = 1 + 10 * torch.exp(-((left + right) ** 2) / 50)
    assert float(weights[10, 15]) == pytest.approx(1 + 10 * 2.718281828 ** (-(5**2) / 50))
    valid = labels[0] != IGNORE_INDEX
    each = F.cross_entropy(logits, labels.long(), ignore_index=IGNORE_INDEX, reduction="none")[0]
    torch.testing.assert_close(total, (weights * each)[valid].sum() / valid.sum())


def test_another_u_net_s_encoder_is_taken_over() -> None:
    source, model = narrow(num_classes=5), narrow()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1)
    load_pretrained(model, backbone_state(source.state_dict()))
    assert all(
        torch.equal(value, source.backbone.state_dict()[name]) for name, value in model.backbone.state_dict().items()
    )
    wide = narrow(UNetConfig(width=5))
    with pytest.raises(
        ValueError, match="does not fit backbone 'unet'; tensors .* of another shape: levels.0.0.weight"
    ):
        load_pretrained(wide, backbone_state(source.state_dict()))


@pytest.mark.parametrize("backbone", [name for name, spec in BACKBONES.items() if spec.last_stride == 32])
def test_every_backbone_has_its_way_up(backbone: str) -> None:
    model = meta_model(BackboneUNetConfig(backbone=backbone), 4)
    assert model(torch.empty(1, 3, 65, 90, device="meta")).logits_NCHW.shape == (1, 4, 65, 90)
    trunk = model.get_submodule("backbone")
    assert isinstance(trunk, Backbone)
    channels = trunk.channels
    assert model.get_submodule("head.classifier").in_channels == channels[32] // 16
    assert [block.up.in_channels for block in model.decoder.blocks] == [channels[32] // 2**level for level in range(4)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "resnet18"}, "has an encoder of its own and not 'resnet18'; leave its backbone at 'unet'"),
        ({"width": 0}, "width is 0; it must be at least 1"),
        ({"border_weight": -1.0}, "border_weight is -1.0; it must not be negative"),
        ({"border_sigma_px": 0.0}, "border_sigma_px is 0.0 and border_background -1; expected a number above 0"),
        ({"border_background": 255}, "border_background 255; expected .* a class or -1"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNetConfig(**changes)  # type: ignore[arg-type]


def test_a_background_that_is_no_class_is_refused() -> None:
    with pytest.raises(ValueError, match="border_background is class 3 and there are 3 classes; give one of 0 to 2"):
        build_model(replace(NARROW, border_weight=1.0, border_background=3), 3)
    with pytest.raises(ValueError, match="backbone 'unet' is the encoder of network 'unet' alone; known: resnet18, "):
        BackboneUNetConfig(backbone="unet")
