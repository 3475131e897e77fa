"""DUpsampling: published costs, and the identities that its decoder rests on."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segcore import IGNORE_INDEX
from segcore.cost import count_multiply_adds, count_parameters, decoder_multiply_adds
from segcore.label_code import project, reconstruct
from segcore.label_pca import LabelPCA
from segcore.losses import cross_entropy
from segcore.models import DUpsampleConfig, DUpsampling, DUpsamplingConfig, build_model, meta_model
from segcore.models.block_codes import CODE_SCALES, BlockCode, CodeScale, block_code
from segcore.optim import OptimConfig, build_optimiser

CLASSES = 4
SMALL = DUpsamplingConfig(
    backbone="mobilenet_v3_small",
    output_stride=16,
    features=(4,),
    dupsample=DUpsampleConfig(num_components=6),
    aspp_channels=16,
)
R50 = DUpsamplingConfig(
    backbone="resnet50_deep", output_stride=16, features=(2, 16), dupsample=DUpsampleConfig(num_components=64)
)
X65 = DUpsamplingConfig(
    backbone="xception65", output_stride=16, features=(16,), dupsample=DUpsampleConfig(num_components=128)
)

MakeLabelPCA = Callable[..., LabelPCA]


def on_meta(config: DUpsamplingConfig, num_classes: int = 21) -> DUpsampling:
    model = meta_model(config, num_classes)
    assert isinstance(model, DUpsampling)
    return model


def with_head(config: DUpsamplingConfig, **changes: Any) -> DUpsamplingConfig:
    return replace(config, dupsample=replace(config.dupsample, **changes))


def code_of(label_pca: LabelPCA, config: DUpsampleConfig) -> BlockCode:
    return block_code(label_pca, config, block_side=16, num_classes=CLASSES)


def small(make_label_pca: MakeLabelPCA, config: DUpsamplingConfig = SMALL, *, centred: bool = False) -> DUpsampling:
    torch.manual_seed(0)
    model = build_model(config, CLASSES, label_pca=pca(make_label_pca, centred=centred))
    assert isinstance(model, DUpsampling)
    return model


def pca(make_label_pca: MakeLabelPCA, *, centred: bool = False) -> LabelPCA:
    return make_label_pca(block_side=16, num_classes=CLASSES, num_components=6, centred=centred)


@pytest.mark.parametrize(
    ("config", "parameters", "giga_multiply_adds"),
    [(R50, 27_376_928, 44.70), (replace(R50, features=()), 27_020_352, 44.32), (X65, 41_802_016, 52.26)],
)
def test_whole_networks_have_the_specified_size(
    config: DUpsamplingConfig, parameters: int, giga_multiply_adds: float
) -> None:
    """The specification normalises the code, by two parameters per component; our default is a bias, one of each."""
    normalised = on_meta(with_head(config, code_batch_norm=True, temperature="off"))
    assert count_parameters(normalised).total == parameters
    model = on_meta(config)
    count = count_parameters(model)
    assert count.total == parameters - config.dupsample.num_components + 1  # the temperature
    assert count.frozen == 21 * 16 * 16 * (config.dupsample.num_components + 1)  # basis and bias
    for network in (normalised, model):
        assert round(count_multiply_adds(network, 513, 513) / 1e9, 2) == giga_multiply_adds


# Tables 2 and 3 of the paper: decoder only, 2 x multiply-adds, in billions, at 513 x 513.
@pytest.mark.parametrize(
    ("config", "published"),
    [
        (replace(R50, features=()), 0.80),
        (replace(R50, features=(2,)), 1.13),
        (replace(R50, features=(4,)), 1.15),
        (replace(R50, features=(16,)), 1.23),
        (replace(R50, features=(4, 16)), 1.58),
        (replace(R50, features=(2, 16)), 1.56),
        (replace(X65, features=(4,)), 1.93),
        (X65, 1.98),
    ],
)
def test_decoder_costs_are_the_papers(config: DUpsamplingConfig, published: float) -> None:
    bias_adds = 33 * 33 * 21 * 16 * 16
    flops = 2 * decoder_multiply_adds(on_meta(config), 513, 513) + bias_adds
    assert flops / 1e9 == pytest.approx(published, rel=0.01)


def test_fusion_happens_on_the_coarsest_map_and_the_scores_are_cropped() -> None:
    output = on_meta(R50).eval()(torch.empty(1, 3, 513, 513, device="meta"))
    assert output.low_resolution_NKhw is not None
    assert output.low_resolution_NKhw.shape == (1, 64, 33, 33)
    assert output.logits_NCHW.shape == (1, 21, 513, 513)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("code_scale", CODE_SCALES)
def test_scores_are_the_bases_expansion_of_the_code_whatever_its_unit(
    make_label_pca: MakeLabelPCA, code_scale: CodeScale, centred: bool
) -> None:
    label_pca = pca(make_label_pca, centred=centred)
    model = small(make_label_pca, with_head(SMALL, code_scale=code_scale), centred=centred).eval()
    with torch.no_grad():
        output = model(torch.randn(2, 3, 40, 72))
    code = output.low_resolution_NKhw
    assert code is not None
    basis = torch.from_numpy(label_pca.basis_DP).float()
    scores = torch.einsum("dp,nphw->ndhw", basis, code)
    if centred:
        scores = scores + torch.from_numpy(label_pca.mean_D).float()[:, None, None]
    expected = F.pixel_shuffle(scores, 16)[..., :40, :72] / 0.1
    torch.testing.assert_close(output.logits_NCHW, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("code_scale", CODE_SCALES)
def test_codes_of_labels_expand_to_what_the_label_pca_reconstructs(
    make_label_pca: MakeLabelPCA, code_scale: CodeScale, centred: bool
) -> None:
    """Ties the layer's order of rows and columns to `segcore.label_pca`, on a map that is not square."""
    label_pca = pca(make_label_pca, centred=centred)
    model = small(make_label_pca, with_head(SMALL, code_scale=code_scale), centred=centred)
    labels = np.zeros((48, 80), np.uint8)
    labels[10:, 30:] = 1
    labels[20:40, 50:] = 2
    labels[:5] = IGNORE_INDEX
    code = project(label_pca, labels)
    with torch.no_grad():
        scores = model.head.dupsample(torch.from_numpy(code).float() / model.head.scale_P[:, None, None])
    np.testing.assert_allclose(scores.numpy(), reconstruct(label_pca, code), atol=1e-4)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("code_scale", CODE_SCALES)
def test_the_code_starts_at_the_labels_mean(make_label_pca: MakeLabelPCA, code_scale: CodeScale, centred: bool) -> None:
    label_pca = pca(make_label_pca, centred=centred)
    model = small(make_label_pca, with_head(SMALL, code_scale=code_scale), centred=centred).train()
    with torch.no_grad():
        code = model(torch.randn(8, 3, 64, 64)).low_resolution_NKhw
    assert code is not None
    mean = torch.from_numpy(label_pca.basis_DP.T @ label_pca.mean_D).float() * (not centred)
    deviation = torch.from_numpy(label_pca.eigenvalues_P / label_pca.num_blocks).float().sqrt().max()
    expected = mean[:, None, None].expand_as(code)
    torch.testing.assert_close(code, expected, rtol=0, atol=0.1 * float(deviation))
    assert code.std() > 0  # and yet the image has a say, or nothing would be learnt


def test_the_first_loss_is_no_worse_than_guessing(make_label_pca: MakeLabelPCA) -> None:
    """Regression: a normalised code of the labels' deviation started with random blocks, at twice this loss."""
    model = small(make_label_pca).train()
    labels = torch.randint(0, CLASSES, (2, 64, 64))
    with torch.no_grad():
        assert float(model.loss(model(torch.randn(2, 3, 64, 64)), labels).total) < 1.5 * math.log(CLASSES)


def test_whitened_codes_have_unit_second_moment(make_label_pca: MakeLabelPCA) -> None:
    label_pca = pca(make_label_pca)
    units = {scale: code_of(label_pca, replace(SMALL.dupsample, code_scale=scale)).scale_P for scale in CODE_SCALES}
    assert torch.equal(units["none"], torch.ones(6, dtype=torch.float64))
    assert torch.equal(units["block"], torch.full((6,), 16.0, dtype=torch.float64))
    second = torch.from_numpy(label_pca.eigenvalues_P) / label_pca.num_blocks
    torch.testing.assert_close(second / units["whiten"] ** 2, torch.ones(6, dtype=torch.float64))


def test_components_that_the_labels_never_use_stay_in_the_span(make_label_pca: MakeLabelPCA) -> None:
    label_pca = pca(make_label_pca)
    eigenvalues = label_pca.eigenvalues_P.copy()
    eigenvalues[-1] = -1e-12
    code = code_of(replace(label_pca, eigenvalues_P=eigenvalues), replace(SMALL.dupsample, code_scale="whiten"))
    assert (code.scale_P > 0).all() and code.mean_P.isfinite().all()


def test_training_moves_the_temperature_and_leaves_the_basis_alone(make_label_pca: MakeLabelPCA) -> None:
    model = small(make_label_pca).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimiser = build_optimiser(model, OptimConfig(learning_rate=0.01, weight_decay=0.1))
    images = torch.randn(2, 3, 64, 64)
    labels = torch.randint(0, CLASSES, (2, 64, 64))
    for _ in range(3):
        optimiser.zero_grad()
        model.loss(model(images), labels).total.backward()
        assert model.head.log_temperature.grad is not None and model.head.log_temperature.grad != 0
        optimiser.step()
    assert torch.equal(model.head.dupsample.weight, before["head.dupsample.weight"])
    assert torch.equal(model.head.dupsample.bias, before["head.dupsample.bias"])
    assert float(model.head.temperature) != pytest.approx(0.1, rel=1e-6)
    assert float(model.head.temperature) > 0


def test_the_temperature_stays_positive_and_can_be_fixed(make_label_pca: MakeLabelPCA) -> None:
    model = small(make_label_pca, with_head(SMALL, temperature_init=0.25, temperature="fixed"))
    assert float(model.head.temperature) == pytest.approx(0.25)
    assert not model.head.log_temperature.requires_grad
    with torch.no_grad():
        model.head.log_temperature.fill_(-100)
    assert float(model.head.temperature) == pytest.approx(1e-3)


def test_a_trained_basis_is_the_optimisers(make_label_pca: MakeLabelPCA) -> None:
    model = small(make_label_pca, with_head(SMALL, freeze_basis=False))
    assert model.head.dupsample.weight.requires_grad and count_parameters(model).frozen == 0


@pytest.mark.parametrize(("classes", "floor"), [(21, 2.123), (19, 2.031), (60, 3.123)])
def test_perfect_reconstructions_cost_much_without_temperature(classes: int, floor: float) -> None:
    labels = torch.randint(0, classes, (1, 8, 8))
    one_hot = F.one_hot(labels, classes).movedim(3, 1).double()
    loss = float(cross_entropy(one_hot, labels))
    assert loss == pytest.approx(math.log(math.e + classes - 1) - 1, rel=1e-6)
    assert loss == pytest.approx(floor, abs=5e-4)
    assert float(cross_entropy(one_hot / 0.1, labels)) < 3e-3


def test_the_temperature_changes_probabilities_and_no_prediction(make_label_pca: MakeLabelPCA) -> None:
    model = small(make_label_pca).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        sharp = model(images).logits_NCHW
        temperature = float(model.head.temperature)
        model.head.log_temperature.fill_(0)
        soft = model(images).logits_NCHW
        folded = F.pixel_shuffle(
            F.conv2d(
                model(images).low_resolution_NKhw / model.head.scale_P[:, None, None],
                model.head.dupsample.weight / temperature,
                model.head.dupsample.bias / temperature,
            ),
            16,
        )
    assert torch.equal(sharp.argmax(dim=1), soft.argmax(dim=1))
    torch.testing.assert_close(folded.softmax(dim=1), sharp.softmax(dim=1), rtol=1e-3, atol=1e-5)
    assert not torch.allclose(sharp.softmax(dim=1), soft.softmax(dim=1), atol=1e-2)


def test_the_network_can_learn_one_image(make_label_pca: MakeLabelPCA) -> None:
    """Two classes apart by a diagonal, as in the blocks that the basis was fitted on."""
    model = small(make_label_pca).train()
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    labels = torch.where(rows + columns < 60, 0, 1).expand(2, -1, -1).clone()
    labels[:, :4] = IGNORE_INDEX
    images = (labels == 1).float()[:, None].expand(-1, 3, -1, -1) + 0.1 * torch.randn(2, 3, 64, 64)
    optimiser = build_optimiser(model, OptimConfig(optimiser="adamw", learning_rate=2e-3, decoder_multiplier=5))
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = model.loss(model(images), labels).total
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.25 * losses[0]


def test_label_pcas_that_do_not_fit_are_refused(make_label_pca: MakeLabelPCA) -> None:
    for label_pca, message in (
        (
            make_label_pca(block_side=8, num_classes=4, num_components=6),
            "block side is 8, .* output stride asks for 16",
        ),
        (make_label_pca(block_side=16, num_classes=3, num_components=6), "number of classes is 3, .* asks for 4"),
        (make_label_pca(block_side=16, num_classes=4, num_components=5), "number of components is 5, .* asks for 6"),
    ):
        with pytest.raises(ValueError, match=f"the label PCA's {message}; fit a label PCA with"):
            build_model(SMALL, CLASSES, label_pca=label_pca)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": (4, 4)}, r"features are \(4, 4\); expected different strides out of"),
        ({"features": (32,)}, "expected different strides"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DUpsamplingConfig(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_components": 0}, "num_components is 0"),
        ({"code_scale": "half"}, "unknown code_scale 'half'; known: none, block, whiten"),
        ({"temperature": "warm"}, "unknown temperature 'warm'; known: learned, fixed, off"),
        ({"temperature_init": 0.001}, "temperature_init is 0.001; it must be above"),
        ({"cross_entropy_weight": 0.0}, r"are \(0.0, 0.0\); give one or both"),
        ({"cross_entropy_weight": 0.0, "code_loss_weight": 1.0}, "nothing else trains the temperature or the basis"),
    ],
)
def test_settings_of_the_head_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DUpsampleConfig(**changes)
