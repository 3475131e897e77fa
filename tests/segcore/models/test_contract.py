"""Every network obeys `SegmentationModel`."""

import json
import re
from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from segcore import IGNORE_INDEX
from segcore.inference import prepare
from segcore.label_pca import LabelPCA
from segcore.models import (
    MODELS,
    BackboneUNetConfig,
    BiSeNetConfig,
    DeconvNetConfig,
    DeepLabV1Config,
    DeepLabV2Config,
    DeepLabV3Config,
    DeepLabV3PlusConfig,
    DFANetConfig,
    DilatedContextConfig,
    DUpsampleConfig,
    DUpsamplingConfig,
    EncNetConfig,
    ENetConfig,
    ESPNetConfig,
    FCNConfig,
    ICNetConfig,
    ModelConfig,
    PSPNetConfig,
    RefineNetConfig,
    SegmentationOutput,
    SegNetConfig,
    UNetConfig,
    at_output_stride,
    build_model,
    config_from_dict,
    config_to_dict,
    needed_label_pca,
    restore_model,
)
from segcore.models.contract import LossTerms
from segcore.models.heads import MIN_ENLARGEMENT, FixedDecoder
from segcore.models.main_loss import LossConfig, set_main_loss

NUM_CLASSES = 42
HEIGHT, WIDTH = 97, 131

SIX = DUpsampleConfig(num_components=6)

# Narrow: what is tested here does not depend on the widths.
CASES: dict[str, ModelConfig] = {
    "deeplab_v3plus": DeepLabV3PlusConfig(
        backbone="mobilenet_v3_small", output_stride=16, aspp_channels=16, decoder_channels=16
    ),
    "deeplab_v3plus, plain convolutions": DeepLabV3PlusConfig(
        backbone="resnet18", output_stride=8, aspp_channels=16, decoder_channels=8, separable=False
    ),
    "deeplab_v3plus, no decoder": DeepLabV3PlusConfig(
        backbone="efficientnet_lite0", output_stride=32, aspp_channels=16, low_level_features=()
    ),
    "dfanet": DFANetConfig(classifier_classes=10, decoder_channels=8),
    "dfanet, variant b": DFANetConfig(backbone="dfanet_xception_b", classifier_classes=10, decoder_channels=8),
    "dupsampling": DUpsamplingConfig(
        backbone="mobilenet_v3_small", output_stride=16, features=(2, 16), dupsample=SIX, aspp_channels=16
    ),
    "dupsampling, same padding": DUpsamplingConfig(
        backbone="efficientnet_lite0", output_stride=32, features=(4,), dupsample=SIX, aspp_channels=16
    ),
    "dupsampling, trained basis": DUpsamplingConfig(
        backbone="resnet18",
        output_stride=8,
        features=(),
        dupsample=replace(SIX, freeze_basis=False, code_batch_norm=True, code_loss_weight=0.1),
        aspp_channels=16,
    ),
}

CASES |= {
    "deconvnet": DeconvNetConfig(width=0.0625, fc_channels=16, input_px=64),
    "deconvnet, crops of 32 pixels": DeconvNetConfig(backbone="vgg16_bn", width=0.125, fc_channels=8, input_px=32),
    "deeplab_v1": DeepLabV1Config(channels=16),
    "deeplab_v2": DeepLabV2Config(backbone="resnet18", input_scales=(0.5, 1.0)),
    "deeplab_v2, one size, own branches": DeepLabV2Config(backbone="vgg16_bn", channels=16, input_scales=(1.0,)),
    "deeplab_v3": DeepLabV3Config(backbone="resnet18", aspp_channels=16, multi_grid=(1, 2)),
    "deeplab_v3, final convolution": DeepLabV3Config(
        backbone="mobilenet_v3_small", output_stride=8, aspp_channels=16, final_convolution=True
    ),
    "dilated_context": DilatedContextConfig(backbone="resnet18"),
    "dilated_context, front end": DilatedContextConfig(backbone="mobilenet_v3_small", context="none"),
    "encnet": EncNetConfig(backbone="mobilenet_v3_small", channels=16, num_codewords=4),
    "encnet, lateral": EncNetConfig(backbone="resnet18", channels=8, num_codewords=4, lateral=True),
    "encnet, one loss": EncNetConfig(
        backbone="resnet18", output_stride=32, channels=8, presence_weight=0.0, auxiliary_weight=0.0
    ),
    "enet": ENetConfig(),
    "enet, davidtvs": ENetConfig(layout="davidtvs"),
    "enet, encoder": ENetConfig(stage="encoder"),
    "espnet": ESPNetConfig(),
    "espnet, encoder": ESPNetConfig(stage="encoder", fine_modules=1, coarse_modules=1),
    "fcn": FCNConfig(channels=16, width=0.0625),
    "fcn, 16s at once, learned": FCNConfig(
        variant="16s", at_once=True, learned_upsampling=True, channels=16, width=0.0625
    ),
    "fcn, 32s": FCNConfig(backbone="vgg16_bn", variant="32s", channels=16, width=0.0625),
    "pspnet": PSPNetConfig(backbone="mobilenet_v3_small"),
    "pspnet, same padding": PSPNetConfig(backbone="efficientnet_lite0", output_stride=16, bins=(1, 4)),
    "pspnet, one loss": PSPNetConfig(backbone="resnet18", auxiliary_weight=0.0),
    "segnet": SegNetConfig(width=0.0625),
    "segnet, basic": SegNetConfig(backbone="segnet_basic", width=0.125),
    "refinenet": RefineNetConfig(backbone="resnet18", width=8, coarsest_width=16),
    "refinenet, four pools": RefineNetConfig(
        backbone="efficientnet_lite0", width=16, coarsest_width=16, num_pools=4, dropout=0.0
    ),
    "unet": UNetConfig(width=4),
    "unet, batch norm": UNetConfig(width=4, batch_norm=True, dropout=0.0),
    "unet, padded": UNetConfig(width=4, padded=True, batch_norm=True),
    "backbone_unet": BackboneUNetConfig(backbone="mobilenet_v3_small"),
    "backbone_unet, same padding": BackboneUNetConfig(backbone="efficientnet_lite0", dropout=0.1),
    "bisenet": BiSeNetConfig(backbone="xception39", channels=16, auxiliary_channels=8),
    "bisenet, same padding": BiSeNetConfig(backbone="efficientnet_lite0", channels=16, auxiliary_channels=8),
    "bisenet, one loss": BiSeNetConfig(backbone="resnet18", channels=16, auxiliary_weight=0.0),
    "icnet": ICNetConfig(width=0.25),
    "icnet, layout of image classifiers": ICNetConfig(width=0.25, imagenet_layout=True),
    "icnet, one loss": ICNetConfig(width=0.25, auxiliary_weights=(0.0, 0.0)),
}

# Every network whose last step enlarges bilinearly by 4 or more, with the data-dependent decoder in its place.
CASES |= {
    f"{name}, dupsample": replace(config, decoder="dupsample", dupsample=SIX)
    for name, config in CASES.items()
    if not isinstance(config, DUpsamplingConfig | FixedDecoder) and config.enlargement >= MIN_ENLARGEMENT
}

AUXILIARY_TERMS: dict[str, set[str]] = {
    "bisenet": {"auxiliary_16", "auxiliary_8"},
    "bisenet, same padding": {"auxiliary_16", "auxiliary_8"},
    "deeplab_v2": {"scale_0.5", "scale_1"},
    "encnet": {"presence", "auxiliary"},
    "encnet, lateral": {"presence", "auxiliary"},
    "icnet": {"auxiliary_32", "auxiliary_16"},
    "icnet, layout of image classifiers": {"auxiliary_32", "auxiliary_16"},
    "pspnet": {"auxiliary"},
    "pspnet, same padding": {"auxiliary"},
}
"""Loss terms in training beside the head's own."""

NOT_FOLDED: dict[type[ModelConfig], str] = {
    EncNetConfig: r"context\.norm",
    ENetConfig: r"backbone\.initial\.pooled_norm",
    ESPNetConfig: r".*norm_act\.0|backbone\.join_\w+\.0|head\.merge_quarter\.0\.0",
    PSPNetConfig: r"pyramid\.fuse\.norm",
}
"""Normalisation that no convolution alone feeds: of EncNet's encodings, of ENet's pooled image, of the maps that ESPNet
joins, and of PSPNet's map and means together."""

FEWER_CASES = [pytest.param(name, marks=pytest.mark.slow) if name.endswith(", dupsample") else name for name in CASES]
"""The other last step does not change what some tests look at: slow tests see to it."""

Build = Callable[[ModelConfig], nn.Module]


@pytest.fixture
def build(make_label_pca: Callable[..., LabelPCA]) -> Build:
    def build_case(config: ModelConfig) -> nn.Module:
        torch.manual_seed(0)
        size = needed_label_pca(config)
        label_pca = None if size is None else make_label_pca(num_classes=NUM_CLASSES, **size._asdict())
        model = build_model(config, NUM_CLASSES, label_pca=label_pca)
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():  # FCN's scores: all the rest would be out of sight
                nn.init.normal_(parameter, std=0.05)
        return model

    return build_case


def batch(height: int = HEIGHT, width: int = WIDTH) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, height, width, generator=generator)
    labels = torch.randint(0, NUM_CLASSES, (2, height, width), generator=generator, dtype=torch.uint8)
    labels[:, : height // 3] = IGNORE_INDEX
    return images, labels


def test_every_network_has_a_case_here_with_each_decoder_that_it_can_have() -> None:
    assert {str(config_to_dict(config)["network"]) for config in CASES.values()} == set(MODELS)
    cases = {(type(config), config.decoder) for config in CASES.values()}
    for config_type in MODELS.values():
        fixed = issubclass(config_type, FixedDecoder)
        if not fixed and config_type().decoder == "bilinear" and config_type().enlargement >= MIN_ENLARGEMENT:
            assert (config_type, "dupsample") in cases


@pytest.mark.parametrize("name", CASES)
def test_scores_have_the_images_size_and_each_image_its_own(name: str, build: Build) -> None:
    model = build(CASES[name])
    assert model.num_classes == NUM_CLASSES and isinstance(model.backbone, nn.Module)
    for images in (batch()[0], batch(32, 48)[0]):
        outputs = [model.train()(images), model.eval()(images)]
        for output in outputs:
            assert type(output) is SegmentationOutput
            assert output.logits_NCHW.shape == (2, NUM_CLASSES, *images.shape[2:])
            assert output.logits_NCHW.isfinite().all()
            assert (output.low_resolution_NKhw is None) == (needed_label_pca(CASES[name]) is None)
            assert all(one.shape == output.logits_NCHW.shape for one in output.auxiliary_NCHW)
            assert output.presence_NC is None or output.presence_NC.shape == (2, NUM_CLASSES)
        assert outputs[1].auxiliary_NCHW == ()
    with torch.no_grad():
        together = model.eval()(batch()[0]).logits_NCHW
        apart = [model(image).logits_NCHW for image in batch()[0].split(1)]
    assert apart[0].shape == (1, NUM_CLASSES, HEIGHT, WIDTH)
    torch.testing.assert_close(torch.cat(apart), together, rtol=1e-3, atol=1e-4 * float(together.abs().max()))


@pytest.mark.parametrize("name", CASES)
def test_the_loss_reaches_every_trainable_parameter(name: str, build: Build) -> None:
    """A parameter without a gradient would also stop DistributedDataParallel."""
    model = build(CASES[name]).train()
    images, labels = batch()
    terms = model.loss(model(images), labels)
    assert type(terms) is LossTerms
    with_code = CASES[name].dupsample.code_loss_weight > 0
    own = {"cross_entropy", *(["code"] if with_code else [])}
    assert terms.total.shape == () and set(terms.terms) == own | AUXILIARY_TERMS.get(
        name.removesuffix(", dupsample"), set()
    )
    terms.total.backward()
    trainable = {key: value for key, value in model.named_parameters() if value.requires_grad}
    frozen = {key for key, value in model.named_parameters() if not value.requires_grad}
    is_frozen = CASES[name].decoder == "dupsample" and CASES[name].dupsample.freeze_basis
    assert frozen == ({"head.dupsample.weight", "head.dupsample.bias"} if is_frozen else set())
    without = [key for key, value in trainable.items() if value.grad is None or not value.grad.isfinite().all()]
    assert without == []
    # Under batch normalisation a few gradients are exactly 0 (a residual branch that timm starts at 0).
    moved = sum(bool(value.grad.any()) for value in trainable.values() if value.grad is not None)
    assert moved > 0.5 * len(trainable)


@pytest.mark.parametrize("name", FEWER_CASES)
def test_labels_under_the_ignored_value_do_not_count(name: str, build: Build) -> None:
    model = build(CASES[name]).eval()
    images, labels = batch()
    with torch.no_grad():
        output = model(images)
        valid = labels != IGNORE_INDEX
        log_probability = output.logits_NCHW.log_softmax(dim=1).movedim(1, 3)[valid]
        expected = -log_probability.gather(1, labels[valid].long()[:, None]).mean()
        terms = model.loss(output, labels)
        torch.testing.assert_close(terms.terms["cross_entropy"], expected)
        config = CASES[name]
        weights = {"code": config.dupsample.code_loss_weight}
        if isinstance(config, EncNetConfig):
            weights["presence"] = config.presence_weight
        assert set(terms.terms) == {"cross_entropy", *(term for term, weight in weights.items() if weight)}
        rest = sum(weights[term] * loss for term, loss in terms.terms.items() if term != "cross_entropy")
        torch.testing.assert_close(terms.total, expected + rest)
        nothing = model.loss(output, torch.full_like(labels, IGNORE_INDEX))
        set_main_loss(model, LossConfig(main="dice"))
        replaced = model.loss(output, labels)
    assert float(nothing.total) == 0
    assert set(replaced.terms) == (set(terms.terms) - {"cross_entropy"}) | {"dice"}, "a recipe's loss has one place"


@pytest.mark.parametrize("name", FEWER_CASES)
def test_saved_and_restored_networks_agree(name: str, build: Build) -> None:
    model = build(CASES[name]).train()
    images, _ = batch()
    model(images)  # moves the running statistics
    config = config_from_dict(json.loads(json.dumps(config_to_dict(CASES[name]))))
    assert config == CASES[name]
    restored = restore_model(config, NUM_CLASSES, model.state_dict())
    assert not restored.training
    with torch.no_grad():
        assert torch.equal(restored(images).logits_NCHW, model.eval()(images).logits_NCHW)


@pytest.mark.parametrize("name", FEWER_CASES)
def test_bfloat16_and_channels_last_are_safe(name: str, build: Build) -> None:
    model = build(CASES[name]).eval()
    images, labels = batch()
    with torch.no_grad():
        expected = model(images).logits_NCHW
        images = images.contiguous(memory_format=torch.channels_last)
        model = model.to(memory_format=torch.channels_last)
        torch.testing.assert_close(model(images).logits_NCHW, expected, rtol=1e-3, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model.train()(images)
        assert output.logits_NCHW.dtype == torch.bfloat16
        loss = model.loss(output, labels).total
    assert loss.dtype == torch.float32 and loss.isfinite()
    loss.backward()
    assert all(value.grad.isfinite().all() for value in model.parameters() if value.grad is not None)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_network_is_one_graph(name: str, build: Build) -> None:
    """`torch.compile` finds no place where it has to leave the graph."""
    model = build(CASES[name]).train()
    images, labels = batch(33, 49)
    torch.manual_seed(1)  # dropout
    expected = model.loss(model(images), labels).total
    torch.manual_seed(1)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(model.loss(compiled(images), labels).total, expected, rtol=1e-4, atol=1e-5)
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_compiled_networks_train_and_score_the_same(name: str, build: Build) -> None:
    model = build(CASES[name])
    images, labels = batch()
    with torch.no_grad():
        expected = model.eval()(images).logits_NCHW
        compiled = torch.compile(model)
        torch.testing.assert_close(compiled(images).logits_NCHW, expected, rtol=1e-3, atol=1e-4)
    loss = model.loss(torch.compile(model.train())(images), labels).total
    loss.backward()
    assert loss.isfinite() and all(value.grad is not None for value in model.parameters() if value.requires_grad)
    torch.compiler.reset()


def test_state_dicts_of_another_network_are_refused() -> None:
    config = CASES["deeplab_v3plus"]
    state = build_model(config, NUM_CLASSES).state_dict()
    with pytest.raises(
        ValueError, match=r"(?s)do not fit the network 'deeplab_v3plus' with 6 classes.*head.classifier.weight"
    ):
        restore_model(config, 6, state)
    state.pop("head.classifier.bias")
    with pytest.raises(ValueError, match=r"(?s)with 42 classes.*Missing key.*head.classifier.bias"):
        restore_model(config, NUM_CLASSES, state)


def test_configs_from_dicts_name_what_they_do_not_know() -> None:
    with pytest.raises(ValueError, match=f"unknown network 'vnet'; known: {', '.join(MODELS)}"):
        config_from_dict({"network": "vnet"})
    with pytest.raises(ValueError, match="unknown network None"):
        config_from_dict({"backbone": "resnet18"})
    with pytest.raises(ValueError, match=r"unknown field\(s\) depth, width of network 'dupsampling'; known: backbone,"):
        config_from_dict({"network": "dupsampling", "width": 1, "depth": 2})


REFUSED: dict[str, tuple[object, str]] = {
    "backbone": ("vgg", "unknown backbone 'vgg'; known: [a-z0-9_]+, "),
    "output_stride": (4, "output_stride is 4; it must be one of"),
    "aspp_channels": (0, "aspp_channels is 0; it must be at least 1"),
    "channels": (0, "channels is 0; it must be at least 1"),
    "aspp_dropout": (1.0, "aspp_dropout is 1.0"),
    "dropout": (1.0, "dropout is 1.0"),
    "batch_norm_momentum": (0.0, "batch_norm_momentum 0.0"),
    "decoder": ("bicubic", "unknown decoder 'bicubic'; known: bilinear, dupsample"),
}
"""A wrong value of each setting that several networks share, and what is said of it."""


@pytest.mark.parametrize("config_type", MODELS.values())
def test_configs_refuse_what_cannot_be_built(config_type: type[ModelConfig]) -> None:
    names = {field.name for field in fields(config_type)} & REFUSED.keys()
    assert {"backbone", "batch_norm_momentum"} <= names
    for name in names:
        value, message = REFUSED[name]
        with pytest.raises(ValueError, match=message):
            config_type(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CASES)
def test_trained_weights_fit_every_output_stride_that_the_network_has(name: str, build: Build) -> None:
    config = CASES[name]
    state = build(config).state_dict()
    for output_stride in (8, 16, 32):
        if output_stride == config.output_stride:
            assert at_output_stride(config, output_stride) is config
            continue
        has_one_alone = "output_stride" not in {field.name for field in fields(config)}
        if has_one_alone or (config.decoder == "dupsample" and config.enlargement == config.output_stride):
            reason = "alone" if has_one_alone else "expands blocks of"
            with pytest.raises(ValueError, match=reason):
                at_output_stride(config, output_stride)
            continue
        other = restore_model(at_output_stride(config, output_stride), NUM_CLASSES, state)
        with torch.no_grad():
            assert other(batch()[0][:1]).logits_NCHW.shape == (1, NUM_CLASSES, HEIGHT, WIDTH)


def test_label_pcas_are_asked_for_and_refused(make_label_pca: Callable[..., LabelPCA]) -> None:
    with pytest.raises(ValueError, match="needs a label PCA and got none; .*block side 16 and 6 components"):
        build_model(CASES["dupsampling"], NUM_CLASSES)
    with pytest.raises(ValueError, match="'deeplab_v3plus' with decoder 'bilinear' has no use for a label PCA"):
        label_pca = make_label_pca(block_side=16, num_classes=NUM_CLASSES, num_components=6)
        build_model(CASES["deeplab_v3plus"], NUM_CLASSES, label_pca=label_pca)
    with pytest.raises(ValueError, match="num_classes is 255; expected 1 to 254"):
        build_model(CASES["deeplab_v3plus"], 255)


@pytest.mark.parametrize("case", FEWER_CASES)
def test_a_network_prepared_for_inference_scores_the_same_without_batch_norm(build: Build, case: str) -> None:
    model = build(CASES[case]).train()
    images, _ = batch()
    for _ in range(3):
        model(images)  # running statistics away from their start
    norms = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    with torch.inference_mode():
        before = model.eval()(images).logits_NCHW
        prepare(model, "cpu")
        after = model(images).logits_NCHW
    left = {name for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    run = {name for name in left if not name.startswith("auxiliary.")}
    not_folded = NOT_FOLDED.get(type(CASES[case]))
    assert run == {name for name in norms if not_folded and re.fullmatch(not_folded, name)}
    assert bool(run) == bool(not_folded)
    assert (after - before).abs().amax() < 1e-4 * (before.amax() - before.amin())
