"""ICNet: the released network's size, its three branches, savings against the layers as drawn, compression."""

from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.backbones import build_backbone
from segcore.cost import count_multiply_adds, count_parameters
from segcore.layers import ConvBnAct, downsample
from segcore.models import ICNet, ICNetConfig, build_model, load_pretrained, meta_model, restore_model
from segcore.models.icnet import CascadeFeatureFusion, EnlargedPointwise, SummedPyramid
from segcore.models.icnet_pruning import prune
from segcore.networks import WholeStart, start_from_whole
from tests.segcore.batch_norm import randomise_statistics

NARROW = ICNetConfig(width=0.25)


def trained(config: ICNetConfig = NARROW, num_classes: int = 5) -> ICNet:
    torch.manual_seed(0)
    model = build_model(config, num_classes)
    assert isinstance(model, ICNet)
    randomise_statistics(model)
    nn.init.normal_(model.get_submodule("head.classifier.conv").get_parameter("weight"))
    return model.eval()


class DrawnPointwise(nn.Module):
    """The last layer as the paper draws it: behind the enlargement."""

    def __init__(self, layer: EnlargedPointwise) -> None:
        super().__init__()
        self.conv = layer.conv

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="bilinear"))
        return scores


def as_drawn(model: nn.Module, height: int, width: int) -> nn.Module:
    """The network without its savings; the enlarged map of the released one is cut to a quarter of the image."""

    class Cut(DrawnPointwise):
        def forward(self, x: Tensor) -> Tensor:
            size = (-(-height // 4), -(-width // 4))
            scores: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="bilinear")[..., : size[0], : size[1]])
            return scores

    last = model.get_submodule("head.classifier")
    assert isinstance(last, EnlargedPointwise)
    model.set_submodule("head.classifier", Cut(last))
    return model


def test_number_of_parameters_is_that_of_the_released_network() -> None:
    without = meta_model(ICNetConfig(auxiliary_weights=(0.0, 0.0)), 19)
    assert count_parameters(without).total == 6_699_987
    auxiliary = (256 + 1) * 19 + (128 + 1) * 19
    assert count_parameters(meta_model(ICNetConfig(), 19)).total == 6_699_987 + auxiliary == 6_707_321


@pytest.mark.parametrize(
    ("size", "drawn", "ours"),
    [((1025, 2049), 29.812, 29.572), ((1024, 2048), 29.029, 28.790), ((512, 1024), 7.257, 7.197)],
)
def test_multiply_adds_of_the_layers_as_drawn_and_as_evaluated(
    size: tuple[int, int], drawn: float, ours: float
) -> None:
    model = meta_model(ICNetConfig(), 19)
    assert count_multiply_adds(model, *size) / 1e9 == pytest.approx(ours, abs=6e-4)
    assert count_multiply_adds(as_drawn(model, *size), *size) / 1e9 == pytest.approx(drawn, abs=6e-4)


def test_widths_are_half_of_resnets() -> None:
    half = meta_model(ICNetConfig(), 19).get_submodule("backbone.body").state_dict()
    full = timm.create_model("resnet50s", num_classes=0).state_dict()
    assert half.keys() == full.keys()
    for name, value in half.items():
        expected = (
            [
                length if name == "conv1.0.weight" and axis == 1 else length // 2
                for axis, length in enumerate(full[name].shape)
            ]
            if value.ndim in (1, 4)
            else []
        )
        if value.ndim == 4:
            expected[2:] = full[name].shape[2:]
        assert list(value.shape) == expected, name


def test_stride_and_dilation_are_those_of_the_released_network() -> None:
    body = meta_model(ICNetConfig(), 19).get_submodule("backbone.body")
    strided = {
        name for name, module in body.named_modules() if isinstance(module, nn.Conv2d) and module.stride == (2, 2)
    }
    assert strided == {"conv1.0", "layer2.0.conv1", "layer2.0.downsample.0"}
    for stage, blocks, dilation in ((1, 3, 1), (2, 4, 1), (3, 6, 2), (4, 3, 4)):
        for block in range(blocks):
            convolution = body.get_submodule(f"layer{stage}.{block}.conv2")
            assert isinstance(convolution, nn.Conv2d)
            assert convolution.dilation == convolution.padding == (dilation, dilation)


@pytest.mark.parametrize("size", [(97, 131), (128, 160), (33, 64)])
def test_branches_have_their_strides(size: tuple[int, int]) -> None:
    model = meta_model(NARROW, 5)
    shapes: dict[str, tuple[int, ...]] = {}
    for name in ("reduce", "fuse_16", "fuse_8", "detail"):
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, x, name=name: shapes.__setitem__(name, tuple(x.shape[-2:]))
        )
    model(torch.empty(1, 3, *size, device="meta"))
    strides = {"reduce": 32, "fuse_16": 16, "fuse_8": 8, "detail": 8}
    assert shapes == {name: (-(-size[0] // stride), -(-size[1] // stride)) for name, stride in strides.items()}


def test_the_half_branch_is_the_resnet_on_means_of_2_x_2() -> None:
    model = trained()
    images = torch.randn(1, 3, 66, 65)
    body = model.backbone.body
    stages = {number: list(body.get_submodule(f"layer{number}").children()) for number in (1, 2, 3, 4)}
    with torch.no_grad():
        shared, last = model.backbone(downsample(images, 2, height=33, width=33))
        x = F.avg_pool2d(F.pad(images, (0, 1, 0, 0), mode="replicate"), 2)
        x = body.maxpool(body.act1(body.bn1(body.conv1(x))))
        for block in (*stages[1], stages[2][0]):
            x = block(x)
        expected = x
        torch.testing.assert_close(shared, expected)
        x = downsample(expected, 2, height=3, width=3)
        for block in (*stages[2][1:], *stages[3], *stages[4]):
            x = block(x)
        torch.testing.assert_close(last, x)


def test_the_pyramid_adds_up_means() -> None:
    x = torch.randn(2, 3, 12, 18)
    expected = x.clone()
    for side in (1, 2, 3, 6):
        means = F.avg_pool2d(x, (12 // side, 18 // side))
        expected += F.interpolate(means, size=(12, 18), mode="bilinear")
    torch.testing.assert_close(SummedPyramid()(x), expected)
    constant = torch.randn(1, 3, 1, 1).expand(1, 3, 5, 7)
    torch.testing.assert_close(SummedPyramid()(constant), 5 * constant)


@pytest.mark.parametrize("size", [(8, 8), (9, 11)])
def test_fusion_computes_its_definition(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = CascadeFeatureFusion(6, 3, 4).eval()
    randomise_statistics(layer)
    coarse, fine = torch.randn(2, 6, *(-(-length // 2) for length in size)), torch.randn(2, 3, *size)
    enlarged = F.interpolate(coarse, scale_factor=2, mode="bilinear")[..., : size[0], : size[1]]
    x = layer.coarse.norm(F.conv2d(enlarged, layer.coarse.conv.weight, padding=2, dilation=2))
    expected = torch.relu(x + layer.fine.norm(F.conv2d(fine, layer.fine.conv.weight)))
    torch.testing.assert_close(layer(coarse, fine), expected)


def test_the_last_layer_commutes_with_its_enlargement() -> None:
    torch.manual_seed(0)
    layer = EnlargedPointwise(6, 4, bias=True)
    x = torch.randn(2, 6, 5, 7)
    torch.testing.assert_close(layer(x), DrawnPointwise(layer)(x))


def test_auxiliary_losses_have_their_weights_and_vanish_in_evaluation() -> None:
    model = trained().train()
    images, labels = torch.randn(2, 3, 65, 49), torch.randint(0, 5, (2, 65, 49))
    output = model(images)
    main, *others = (F.cross_entropy(one, labels) for one in (output.logits_NCHW, *output.auxiliary_NCHW))
    terms = model.loss(output, labels)
    torch.testing.assert_close(terms.total, main + 0.16 * others[0] + 0.4 * others[1])
    assert list(terms.terms) == ["cross_entropy", "auxiliary_32", "auxiliary_16"]
    with torch.no_grad():
        assert model.eval()(images).auxiliary_NCHW == ()


FULL = ICNetConfig(width=2, imagenet_layout=True)


def test_imagenet_weights_of_full_width_compute_what_the_classifier_computes() -> None:
    torch.manual_seed(0)
    classifier = build_backbone("resnet50_deep", output_stride=32).eval()
    randomise_statistics(classifier)
    model = build_model(FULL, 3).eval()
    assert isinstance(model, ICNet)
    load_pretrained(model, classifier.body.state_dict() | {"fc.weight": torch.zeros(1000, 2048)})
    images = torch.randn(1, 3, 33, 40)
    with torch.no_grad():
        shared, _ = model.backbone(images)
        body = classifier.body
        expected = body.get_submodule("layer2.0")(classifier(images)[4])
    torch.testing.assert_close(shared, expected)


def test_image_classifiers_that_do_not_fit_are_refused_with_the_remedy() -> None:
    weights = {"fc.weight": torch.zeros(10, 8)}
    with pytest.raises(ValueError, match="strides are elsewhere .*; set imagenet_layout .and width 2"):
        load_pretrained(trained(), weights)
    with pytest.raises(ValueError, match="does not fit backbone 'resnet50_deep'.*width 2"):
        load_pretrained(trained(replace(NARROW, imagenet_layout=True)), weights)


def dead_channels(model: ICNet, kept: ICNet) -> None:
    """Fill a network from a narrower one; its further channels are 0 everywhere they are written or biased."""
    state, source = model.state_dict(), kept.state_dict()
    generator = torch.Generator().manual_seed(1)
    for name, value in state.items():
        if value.shape == source[name].shape:
            value.copy_(source[name])
            continue
        full = torch.zeros_like(value) if value.ndim == 1 else torch.randn(value.shape, generator=generator)
        if name.endswith("running_var"):
            full += 1
        if value.ndim == 4 and value.shape[0] != source[name].shape[0]:
            full[1::2] = 0  # what is written
        places = [slice(None, None, 2) if one != other else slice(None) for one, other in
                  zip(value.shape, source[name].shape, strict=True)]  # fmt: skip
        full[tuple(places)] = source[name]
        value.copy_(full)


def test_pruning_cuts_out_the_channels_that_do_nothing() -> None:
    """Every other channel of a network of twice the width is dead; what is left is the network of half the width."""
    kept = trained()
    wide = trained(replace(NARROW, width=0.5))
    dead_channels(wide, kept)
    images = torch.randn(1, 3, 65, 98)
    with torch.no_grad():
        expected = wide(images).logits_NCHW
        torch.testing.assert_close(kept(images).logits_NCHW, expected, rtol=1e-3, atol=1e-3)
    pruned = prune(wide.state_dict(), share=0.5)
    for name, value in kept.state_dict().items():
        assert torch.equal(pruned[name], value), name
    narrow = restore_model(NARROW, 5, pruned)
    with torch.no_grad():
        torch.testing.assert_close(narrow(images).logits_NCHW, expected, rtol=1e-3, atol=1e-3)


def test_pruning_keeps_the_largest_kernels_and_one_choice_per_residual_stage() -> None:
    model = trained(replace(NARROW, width=0.5))
    state = model.state_dict()
    pruned = prune(state, share=0.5)
    body = "backbone.body."
    norms = state[f"{body}layer3.2.conv2.weight"].abs().sum(dim=(1, 2, 3))
    kept = sorted(sorted(range(len(norms)), key=lambda channel: -float(norms[channel]))[: len(norms) // 2])
    inner = sorted(  # of conv1, whose outputs conv2 takes
        state[f"{body}layer3.2.conv1.weight"].abs().sum(dim=(1, 2, 3)).topk(len(norms) // 2).indices.tolist()
    )
    expected = state[f"{body}layer3.2.conv2.weight"][kept][:, inner]
    assert torch.equal(pruned[f"{body}layer3.2.conv2.weight"], expected)
    assert torch.equal(pruned[f"{body}layer3.2.bn2.running_mean"], state[f"{body}layer3.2.bn2.running_mean"][kept])
    writers = [f"{body}layer2.0.downsample.0", *(f"{body}layer2.{block}.conv3" for block in range(4))]
    total = sum(state[f"{writer}.weight"].abs().sum(dim=(1, 2, 3)) for writer in writers)
    assert isinstance(total, Tensor)
    shared = total.topk(len(total) // 2).indices.sort().values
    for norm in ("layer2.0.downsample.1", "layer2.0.bn3", "layer2.3.bn3"):
        assert torch.equal(pruned[f"{body}{norm}.running_var"], state[f"{body}{norm}.running_var"][shared])
    assert torch.equal(pruned["fuse_16.fine.conv.weight"], state["fuse_16.fine.conv.weight"][:, shared])


def test_pruning_runs_from_full_width_to_the_published_one_in_two_steps() -> None:
    state = meta_model(ICNetConfig(width=2), 19).state_dict()
    materialised = {name: torch.rand(value.shape).to(value.dtype) for name, value in state.items()}
    middle = prune(materialised, share=3 / 4)
    final = prune(middle, share=2 / 3)
    for width, found in ((1.5, middle), (1.0, final)):
        expected = meta_model(ICNetConfig(width=width), 19).state_dict()
        assert {name: value.shape for name, value in found.items()} == {
            name: value.shape for name, value in expected.items()
        }
    same = prune(final, share=1)
    assert all(torch.equal(same[name], value) for name, value in final.items())


def test_a_pruned_backbone_starts_another_training() -> None:
    wide = trained(replace(NARROW, width=0.5))
    state = prune(wide.state_dict(), share=0.5)
    backbone = {name.removeprefix("backbone.body."): value for name, value in state.items() if "backbone." in name}
    model = trained()
    load_pretrained(model, backbone)
    assert all(torch.equal(value, backbone[name]) for name, value in model.backbone.body.state_dict().items())


def test_a_training_that_starts_from_a_wider_network_prunes_it() -> None:
    wide = trained(replace(NARROW, width=0.5))
    model = trained()
    assert start_from_whole(model, wide.state_dict()) == WholeStart(untouched=(), unused=())
    expected = prune(wide.state_dict(), share=0.5)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    same = trained()
    start_from_whole(same, model.state_dict())
    assert all(torch.equal(value, expected[name]) for name, value in same.state_dict().items())
    with pytest.raises(ValueError, match="of another shape: backbone.body.conv1.0.weight"):
        start_from_whole(wide, model.state_dict())


def test_pruning_refuses_what_it_cannot_do() -> None:
    state = trained().state_dict()
    with pytest.raises(ValueError, match="share is 0; expected above 0 and up to 1"):
        prune(state, share=0)
    with pytest.raises(ValueError, match=r"share 0.3 of the 8 channels of backbone.body.conv1.0 is no whole number"):
        prune(state, share=0.3)
    with pytest.raises(ValueError, match="no backbone.body.conv1.0.weight; give that of an ICNet as a whole"):
        prune({"conv1.weight": torch.zeros(1)}, share=0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0.3}, "width is 0.3; it must be a multiple of 0.25"),
        ({"width": 0}, "width is 0; it must be a multiple of 0.25, and at least that"),
        ({"auxiliary_weights": (0.1,)}, r"auxiliary_weights are \(0.1,\); expected two"),
        ({"auxiliary_weights": (0.1, -1.0)}, "none of them negative"),
        (
            {"backbone": "resnet18"},
            "a ResNet with a deep stem, not on 'resnet18'; known: resnet50_deep, resnet101_deep",
        ),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ICNetConfig(**changes)  # type: ignore[arg-type]


def test_no_strided_pointwise_convolution_is_so_narrow_that_onednn_corrupts_memory() -> None:
    """See `segcore.backbones.light_xception`."""
    body = meta_model(NARROW, 5)
    for module in body.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.stride != (1, 1):
            assert min(module.in_channels, module.out_channels) >= 16
    assert isinstance(body.get_submodule("reduce"), ConvBnAct)
