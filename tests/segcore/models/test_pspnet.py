"""PSPNet: published sizes, and what its parts must satisfy."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.cost import count_multiply_adds, count_parameters, module_multiply_adds
from segcore.layers import PyramidPooling
from segcore.models import PSPNetConfig, SegmentationOutput, build_model, meta_model
from tests.segcore.batch_norm import randomise_statistics

NARROW = PSPNetConfig(backbone="resnet18")

FIFTY, HUNDRED = PSPNetConfig(), PSPNetConfig(backbone="resnet101_deep")
PLAIN_FIFTY = PSPNetConfig(backbone="resnet50", auxiliary_weight=0.0)
PLAIN_HUNDRED = PSPNetConfig(backbone="resnet101", auxiliary_weight=0.0)


class ConcatenatedPyramid(nn.Module):
    """The layer as the paper draws it."""

    def __init__(self, layer: PyramidPooling) -> None:
        super().__init__()
        self.layer = layer

    def branches(self, x_NKhw: Tensor) -> list[Tensor]:
        return [
            F.interpolate(
                branch(F.adaptive_avg_pool2d(x_NKhw, side)),
                size=x_NKhw.shape[2:],
                mode="bilinear",
                align_corners=self.layer.align_corners,
            )
            for side, branch in zip(self.layer.bins, self.layer.branches, strict=True)
        ]

    def forward(self, x_NKhw: Tensor) -> Tensor:
        fused: Tensor = self.layer.fuse(torch.cat([x_NKhw, *self.branches(x_NKhw)], dim=1))
        return fused


@pytest.mark.parametrize(
    ("config", "num_classes", "expected"),
    [
        (FIFTY, 150, 49_180_908),
        (FIFTY, 19, 49_080_038),
        (PLAIN_FIFTY, 21, 46_592_597),
        (HUNDRED, 150, 68_173_036),
        (HUNDRED, 19, 68_072_166),
        (PLAIN_HUNDRED, 21, 65_584_725),
    ],
)
def test_number_of_parameters(config: PSPNetConfig, num_classes: int, expected: int) -> None:
    assert count_parameters(meta_model(config, num_classes)).total == expected


@pytest.mark.parametrize(
    ("config", "num_classes", "side", "expected", "ours"),
    [
        (FIFTY, 150, 473, 161.875, 128.099),
        (FIFTY, 19, 713, 363.777, 287.624),
        (HUNDRED, 150, 473, 230.058, 196.283),
        (HUNDRED, 19, 713, 517.190, 441.037),
    ],
)
def test_multiply_adds(config: PSPNetConfig, num_classes: int, side: int, expected: float, ours: float) -> None:
    """Published with the concatenation that the pyramid avoids; the auxiliary classifier is never in it."""
    model = meta_model(config, num_classes)
    assert count_multiply_adds(model, side, side) / 1e9 == pytest.approx(ours, rel=1e-5)
    without = meta_model(replace(config, auxiliary_weight=0.0), num_classes)
    assert count_multiply_adds(without, side, side) == count_multiply_adds(model, side, side)
    pyramid = model.get_submodule("pyramid")
    assert isinstance(pyramid, PyramidPooling)
    model.set_submodule("pyramid", ConcatenatedPyramid(pyramid))
    assert count_multiply_adds(model, side, side) / 1e9 == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(13, 17), (6, 6), (5, 9), (2, 3), (1, 1), (1, 8)])
@pytest.mark.parametrize("bins", [(1, 2, 3, 6), (1, 4)])
def test_the_pyramid_is_a_convolution_over_the_enlarged_means(
    size: tuple[int, int], bins: tuple[int, ...], align_corners: bool
) -> None:
    torch.manual_seed(0)
    layer = PyramidPooling(16, 6, bins=bins, align_corners=align_corners).double().eval()
    randomise_statistics(layer)
    x = torch.randn(2, 16, *size, dtype=torch.float64)
    torch.testing.assert_close(layer(x), ConcatenatedPyramid(layer)(x), rtol=1e-12, atol=1e-12)
    assert module_multiply_adds(layer, x.to("meta")) > 0


def test_its_gradients_are_those_of_that_convolution() -> None:
    torch.manual_seed(0)
    layer = PyramidPooling(16, 6).double()
    x = torch.randn(2, 16, 9, 7, dtype=torch.float64, requires_grad=True)
    leaves = [x, *layer.parameters()]
    direction = torch.randn(2, 6, 9, 7, dtype=torch.float64)
    found = torch.autograd.grad((layer(x) * direction).sum(), leaves)
    expected = torch.autograd.grad((ConcatenatedPyramid(layer)(x) * direction).sum(), leaves)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_what_comes_from_bin_one_is_the_same_everywhere() -> None:
    torch.manual_seed(0)
    layer = PyramidPooling(16, 6).eval()
    alone = torch.zeros(6, 32, 3, 3)
    alone[:, 16:20, 1, 1] = torch.randn(6, 4)  # the first branch, and no neighbours
    layer.load_state_dict({**layer.state_dict(), "fuse.conv.weight": alone})
    output = layer(torch.randn(2, 16, 9, 7))
    torch.testing.assert_close(output, output[:, :, :1, :1].expand_as(output))
    assert output.amax() > 0
    alone = alone.roll(4, dims=1)
    layer.load_state_dict({**layer.state_dict(), "fuse.conv.weight": alone})
    output = layer(torch.randn(2, 16, 9, 7))
    assert (output != output[:, :, :1, :1]).any()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_memory_layout_does_not_matter(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    layer = PyramidPooling(16, 6).eval()
    x = torch.randn(2, 16, 9, 7)
    found = layer.to(memory_format=layout)(x.contiguous(memory_format=layout))
    assert found.is_contiguous(memory_format=layout)
    torch.testing.assert_close(found, ConcatenatedPyramid(layer)(x), rtol=1e-4, atol=1e-5)


def test_training_on_one_image_is_refused_with_the_remedies() -> None:
    layer = PyramidPooling(16, 6)
    with pytest.raises(
        ValueError,
        match="mean over the whole map was given a training batch of 1 image.*raise the batch size.*eval mode",
    ):
        layer(torch.randn(1, 16, 9, 7))
    assert layer(torch.randn(2, 16, 9, 7)).shape == (2, 6, 9, 7)
    assert PyramidPooling(16, 6, bins=(2, 3))(torch.randn(1, 16, 9, 7)).shape == (1, 6, 9, 7)
    layer.branches[0].eval()
    assert layer(torch.randn(1, 16, 9, 7)).shape == (1, 6, 9, 7)


def test_the_auxiliary_classifier_adds_four_tenths_of_its_loss_and_vanishes_in_evaluation() -> None:
    torch.manual_seed(0)
    model = build_model(NARROW, 5).train()
    images, labels = torch.randn(2, 3, 33, 49), torch.randint(0, 5, (2, 33, 49))
    output: SegmentationOutput = model(images)
    (auxiliary,) = output.auxiliary_NCHW
    assert auxiliary.shape == output.logits_NCHW.shape
    terms = model.loss(output, labels)
    main, extra = F.cross_entropy(output.logits_NCHW, labels), F.cross_entropy(auxiliary, labels)
    torch.testing.assert_close(terms.total, main + 0.4 * extra)
    torch.testing.assert_close(terms.terms, {"cross_entropy": main.detach(), "auxiliary": extra.detach()})
    with torch.no_grad():
        output = model.eval()(images)
    assert output.auxiliary_NCHW == ()
    assert set(model.loss(output, labels).terms) == {"cross_entropy"}


def test_a_weight_of_zero_leaves_the_auxiliary_classifier_out() -> None:
    model = build_model(replace(NARROW, auxiliary_weight=0.0), 5).train()
    assert not [name for name, _ in model.named_parameters() if name.startswith("auxiliary")]
    assert model(torch.randn(2, 3, 33, 49)).auxiliary_NCHW == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bins": ()}, r"bins are \(\); expected different numbers, each at least 1"),
        ({"bins": (1, 2, 2)}, r"bins are \(1, 2, 2\)"),
        ({"bins": (0, 1)}, r"bins are \(0, 1\)"),
        ({"auxiliary_weight": -1.0}, "auxiliary_weight is -1.0; it must not be negative"),
        (
            {"released_layout": True, "output_stride": 16},
            "'resnet50_deep' at output stride 16; hszhao/semseg has ResNet-50",
        ),
        ({"released_layout": True, "backbone": "resnet18"}, "released_layout was asked for with backbone 'resnet18'"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PSPNetConfig(**changes)  # type: ignore[arg-type]
