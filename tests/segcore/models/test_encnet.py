"""EncNet: published sizes, and what its parts must satisfy."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore import IGNORE_INDEX
from segcore.cost import count_multiply_adds, count_parameters
from segcore.losses import class_presence, presence_loss
from segcore.models import EncNetConfig, SegmentationOutput, build_model, meta_model
from segcore.models.encnet import ContextEncoding

NARROW = EncNetConfig(backbone="resnet18", channels=16, num_codewords=4)

FIFTY, HUNDRED = EncNetConfig(), EncNetConfig(backbone="resnet101_deep")
ENCODING_480 = 2 * 60 * 60 * 32 * 512
"""Multiply-adds of the encoding layer's two matrix products at 480 x 480."""


@pytest.mark.parametrize(
    ("config", "num_classes", "expected"),
    [
        (FIFTY, 150, 36_164_578),
        (replace(FIFTY, lateral=True), 59, 43_915_217),
        (replace(FIFTY, lateral=True), 21, 43_866_463),
        (HUNDRED, 150, 55_156_706),
        (replace(HUNDRED, lateral=True), 59, 62_907_345),
        (replace(HUNDRED, lateral=True), 21, 62_858_591),
    ],
)
def test_number_of_parameters(config: EncNetConfig, num_classes: int, expected: int) -> None:
    assert count_parameters(meta_model(config, num_classes)).total == expected


@pytest.mark.parametrize(
    ("config", "num_classes", "expected"),
    [
        (FIFTY, 150, 129.017),
        (replace(FIFTY, lateral=True), 59, 157.161),
        (HUNDRED, 150, 197.201),
        (replace(HUNDRED, lateral=True), 59, 225.344),
    ],
)
def test_multiply_adds(config: EncNetConfig, num_classes: int, expected: float) -> None:
    """The published way of counting leaves the encoding layer out, and so it leaves the auxiliary classifier."""
    counted = count_multiply_adds(meta_model(config, num_classes), 480, 480)
    assert (counted - ENCODING_480) / 1e9 == pytest.approx(expected, rel=1e-5)
    without = count_multiply_adds(meta_model(replace(config, auxiliary_weight=0.0), num_classes), 480, 480)
    assert without == counted


def test_channels_are_scaled_by_between_one_and_two_wherever_they_lie() -> None:
    torch.manual_seed(0)
    context = ContextEncoding(8, 4).eval()
    x = torch.randn(2, 8, 5, 7).relu() + 0.1
    scaled, encoding = context(x)
    factor = scaled / x
    assert encoding.shape == (2, 8)
    assert float(factor.detach().amin()) > 1 and float(factor.detach().amax()) < 2
    torch.testing.assert_close(factor, factor[:, :, :1, :1].expand_as(factor))
    gamma = context.attention(encoding).sigmoid()[:, :, None, None]
    torch.testing.assert_close(scaled, F.relu(x + x * gamma))


def test_the_context_is_the_mean_over_codewords_of_normalised_encodings() -> None:
    torch.manual_seed(0)
    context = ContextEncoding(8, 4).eval()
    with torch.no_grad():
        for values in (context.norm.weight, context.norm.bias, context.norm.running_mean, context.norm.running_var):
            assert values is not None
            values.uniform_(0.5, 1.5)
    x = torch.randn(2, 8, 5, 7)
    encodings = context.encoding(context.project(x))
    by_codeword = context.norm
    assert by_codeword.running_mean is not None and by_codeword.running_var is not None
    scale = by_codeword.weight / (by_codeword.running_var + by_codeword.eps).sqrt()
    normalised = (encodings - by_codeword.running_mean[:, None]) * scale[:, None] + by_codeword.bias[:, None]
    torch.testing.assert_close(context(x)[1], normalised.relu().mean(dim=1))


def test_lateral_features_enter_in_the_order_of_the_released_code() -> None:
    torch.manual_seed(0)
    model = build_model(replace(NARROW, lateral=True), 3).eval()
    images = torch.randn(1, 3, 65, 97)
    features = model.get_submodule("backbone")(images)
    lateral = model.get_submodule("lateral")
    x = model.get_submodule("reduce")(features[32])
    first, second = lateral.get_submodule("projections.0"), lateral.get_submodule("projections.1")
    joined = torch.cat([x, first(features[8]), second(features[16])], dim=1)
    torch.testing.assert_close(lateral(x, features), lateral.get_submodule("fuse")(joined))


def label_map() -> Tensor:
    labels = torch.zeros(2, 8, 9, dtype=torch.uint8)
    labels[0, 2:4, 3:5] = 3
    labels[1] = IGNORE_INDEX
    labels[1, 0, 0] = 2
    return labels


def test_presence_is_a_matter_of_classes_and_not_of_pixels() -> None:
    labels = label_map()
    expected = torch.tensor([[True, False, False, True, False], [False, False, True, False, False]])
    assert torch.equal(class_presence(labels, 5), expected)
    order = torch.randperm(72, generator=torch.Generator().manual_seed(0))
    moved = labels.flatten(1)[:, order].unflatten(1, (8, 9))
    grown = labels.clone()
    grown[0, 2:7] = 3
    for same in (moved, grown, labels.flip(2), labels.long()):
        assert torch.equal(class_presence(same, 5), expected)
    assert not class_presence(torch.full_like(labels, IGNORE_INDEX), 5).any()


def test_the_presence_loss_is_the_mean_binary_cross_entropy() -> None:
    torch.manual_seed(0)
    labels, scores = label_map(), torch.randn(2, 5)
    target = class_presence(labels, 5).float()
    probability = scores.sigmoid()
    expected = -(target * probability.log() + (1 - target) * (1 - probability).log()).mean()
    torch.testing.assert_close(presence_loss(scores, labels), expected)
    assert presence_loss(scores.bfloat16(), labels).dtype == torch.float32


def test_images_without_a_valid_pixel_say_nothing_about_their_classes() -> None:
    torch.manual_seed(0)
    labels, scores = label_map(), torch.randn(2, 5, requires_grad=True)
    labels[1] = IGNORE_INDEX
    loss = presence_loss(scores, labels)
    torch.testing.assert_close(loss, presence_loss(scores[:1], labels[:1]))
    nothing = presence_loss(scores, torch.full_like(labels, IGNORE_INDEX))
    nothing.backward()
    assert float(nothing.detach()) == 0 and scores.grad is not None and not scores.grad.any()


def output_of(model: nn.Module, height: int = 33, width: int = 49) -> tuple[SegmentationOutput, Tensor]:
    generator = torch.Generator().manual_seed(0)
    output: SegmentationOutput = model(torch.randn(2, 3, height, width, generator=generator))
    return output, torch.randint(0, 5, (2, height, width), generator=generator)


def test_each_weight_enters_the_loss_linearly() -> None:
    torch.manual_seed(0)
    model = build_model(NARROW, 5)
    output, labels = output_of(model)
    assert output.presence_NC is not None and output.presence_NC.shape == (2, 5)
    (auxiliary,) = output.auxiliary_NCHW
    main = F.cross_entropy(output.logits_NCHW, labels)
    for presence_weight, auxiliary_weight in ((0.2, 0.2), (0.4, 0.2), (0.2, 0.0), (0.0, 0.0)):
        model.presence_weight, model.auxiliary_weight = presence_weight, auxiliary_weight  # type: ignore[assignment]
        terms = model.loss(output, labels)
        expected = main + presence_weight * presence_loss(output.presence_NC, labels)
        torch.testing.assert_close(terms.total, expected + auxiliary_weight * F.cross_entropy(auxiliary, labels))
        assert set(terms.terms) == {"cross_entropy", "presence", "auxiliary"}


def test_weights_of_zero_leave_the_layers_out() -> None:
    torch.manual_seed(0)
    model = build_model(replace(NARROW, presence_weight=0.0, auxiliary_weight=0.0), 5)
    output, labels = output_of(model)
    assert output.presence_NC is None and output.auxiliary_NCHW == ()
    assert not [name for name, _ in model.named_parameters() if name.startswith(("presence", "auxiliary"))]
    terms = model.loss(output, labels)
    torch.testing.assert_close(terms.total, F.cross_entropy(output.logits_NCHW, labels))


def test_evaluation_knows_the_classes_and_runs_no_auxiliary_classifier() -> None:
    torch.manual_seed(0)
    model = build_model(NARROW, 5).eval()
    with torch.no_grad():
        output, labels = output_of(model)
    assert output.auxiliary_NCHW == () and output.presence_NC is not None
    assert set(model.loss(output, labels).terms) == {"cross_entropy", "presence"}


def test_a_single_image_can_be_trained_on() -> None:
    """Batch normalisation has one channel per codeword, and as many values of each as the encoding has channels."""
    torch.manual_seed(0)
    model = build_model(NARROW, 5).train()
    output: SegmentationOutput = model(torch.randn(1, 3, 33, 49))
    assert output.logits_NCHW.isfinite().all() and output.presence_NC is not None
    assert output.presence_NC.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_codewords": 0}, "num_codewords is 0"),
        ({"presence_weight": -0.1}, "presence_weight is -0.1; it must not be negative"),
        ({"auxiliary_weight": -1.0}, "auxiliary_weight is -1.0"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncNetConfig(**changes)  # type: ignore[arg-type]
