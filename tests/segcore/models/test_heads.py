"""The data-dependent head on its own: its loss on codes, learned codes with a hidden layer, its last step anywhere."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segcore import IGNORE_INDEX
from segcore.label_code import Dense, LabelCode, LearnedCode, project, reconstruct
from segcore.label_pca import LabelPCA
from segcore.layers import LabelEncoder
from segcore.models import DeepLabV3PlusConfig
from segcore.models.block_codes import CODE_SCALES, CodeScale, DUpsampleConfig, block_code
from segcore.models.heads import DUpsampleHead, TransposedHead, pointwise

R, C, P, HIDDEN = 8, 4, 6, 10
MakeLabelPCA = Callable[..., LabelPCA]


def autoencoder() -> LearnedCode:
    rng = np.random.default_rng(0)

    def layers(*sizes: int) -> tuple[Dense, ...]:
        return tuple(
            Dense(rng.normal(size=(after, before)) / before**0.5, rng.normal(size=after))
            for before, after in pairwise(sizes)
        )

    return LearnedCode(
        solver="autoencoder",
        encoder=layers(C * R * R, HIDDEN, P),
        decoder=layers(P, HIDDEN, C * R * R),
        mean_code_P=rng.normal(size=P),
        mean_square_P=2 + rng.normal(size=P) ** 2,
        captured_energy=0.5,
        block_side=R,
        num_classes=C,
        num_blocks=7,
    )


def label_map(*, height: int = 40, width: int = 72) -> NDArray[np.uint8]:
    """Not square, partly ignored."""
    labels = np.zeros((height, width), np.uint8)
    labels[10:, 30:] = 1
    labels[20:37, 50:] = 2
    labels[:5] = IGNORE_INDEX
    labels[:16, :8] = IGNORE_INDEX
    return labels


def head_of(code: LabelCode, **settings: object) -> DUpsampleHead:
    torch.manual_seed(0)
    hidden = HIDDEN if len(code.decoder) > 1 else 0
    config = replace(DUpsampleConfig(num_components=P, hidden_channels=hidden), **settings)  # type: ignore[arg-type]
    return DUpsampleHead(pointwise(5), config, block_code(code, config, block_side=R, num_classes=C))


@pytest.fixture(params=["pca", "centred pca", "autoencoder"])
def code(request: pytest.FixtureRequest, make_label_pca: MakeLabelPCA) -> LabelCode:
    if request.param == "autoencoder":
        return autoencoder()
    return make_label_pca(block_side=R, num_classes=C, num_components=P, centred=request.param == "centred pca")


@pytest.mark.parametrize(("height", "width"), [(40, 72), (37, 65)])
def test_codes_of_a_batch_are_those_of_its_maps(code: LabelCode, height: int, width: int) -> None:
    maps = [label_map(height=height, width=width), label_map(height=height, width=width)[:, ::-1].copy()]
    layers = block_code(code, head_of(code).config, block_side=R, num_classes=C).encoder
    codes, valid = LabelEncoder(layers, block_side=R)(torch.from_numpy(np.stack(maps)))
    for labels, found, share in zip(maps, codes, valid, strict=True):
        np.testing.assert_allclose(found.numpy(), project(code, labels), rtol=1e-4, atol=1e-4)
        padded = np.pad(labels != IGNORE_INDEX, ((0, -height % R), (0, -width % R)))
        np.testing.assert_allclose(share.numpy(), F.avg_pool2d(torch.from_numpy(padded)[None].float(), R)[0].numpy())


@pytest.mark.parametrize("code_scale", CODE_SCALES)
def test_codes_of_labels_expand_to_what_the_code_reconstructs(code: LabelCode, code_scale: CodeScale) -> None:
    head = head_of(code, code_scale=code_scale)
    codes = project(code, label_map())
    with torch.no_grad():
        scaled = torch.from_numpy(codes).float()[None] / head.scale_P[:, None, None]
        scores = head.dupsample(head.hidden(scaled))[0]
    np.testing.assert_allclose(scores.numpy(), reconstruct(code, codes), atol=1e-3)


def test_the_code_loss_is_the_distance_to_the_labels_code_per_valid_pixel(code: LabelCode) -> None:
    head = head_of(code, cross_entropy_weight=0.5, code_loss_weight=2.0)
    labels = torch.from_numpy(label_map())[None]
    with torch.no_grad():
        output = head(torch.randn(1, 5, 5, 9), height=40, width=72)
        terms = head.loss(output, labels)
    assert output.low_resolution_NKhw is not None
    target = torch.from_numpy(project(code, label_map())).float()
    valid = F.avg_pool2d((labels != IGNORE_INDEX).float(), R)[0]
    distance = ((output.low_resolution_NKhw[0] - target) ** 2).sum(dim=0)
    expected = float((distance * valid).sum() / valid.sum() / R**2)
    assert float(terms.terms["code"]) == pytest.approx(expected, rel=1e-4)
    assert float(terms.total) == pytest.approx(0.5 * float(terms.terms["cross_entropy"]) + 2 * expected, rel=1e-4)


def test_values_under_ignored_pixels_do_not_enter_the_code_loss(make_label_pca: MakeLabelPCA) -> None:
    """An ignored pixel has no value; a block of nothing but ignored pixels has no weight either."""
    head = head_of(make_label_pca(block_side=R, num_classes=C, num_components=P), code_loss_weight=1.0)
    labels = torch.from_numpy(label_map())[None]
    with torch.no_grad():
        output = head(torch.randn(1, 5, 5, 9), height=40, width=72)
    assert output.low_resolution_NKhw is not None
    changed = output.low_resolution_NKhw.clone()
    changed[:, :, :2, 0] += 100  # two blocks that are ignored as a whole
    before = head.loss(output, labels).terms["code"]
    after = head.loss(replace(output, low_resolution_NKhw=changed), labels).terms["code"]
    assert torch.equal(before, after)
    assert float(head.loss(output, torch.full_like(labels, IGNORE_INDEX)).total) == 0


def test_a_network_told_the_labels_codes_has_no_code_loss_and_the_bases_predictions(code: LabelCode) -> None:
    head = head_of(code, cross_entropy_weight=0.0, code_loss_weight=1.0, temperature="off")
    codes = torch.from_numpy(project(code, label_map())).float()[None]
    output = head(torch.randn(1, 5, 5, 9), height=40, width=72)
    assert (
        float(head.loss(replace(output, low_resolution_NKhw=codes), torch.from_numpy(label_map())[None]).total) < 1e-6
    )
    assert not any(value.requires_grad for name, value in head.named_parameters() if "predict_code" not in name)


def test_the_code_loss_alone_teaches_the_code(make_label_pca: MakeLabelPCA) -> None:
    label_pca = make_label_pca(block_side=R, num_classes=C, num_components=P)
    head = head_of(label_pca, cross_entropy_weight=0.0, code_loss_weight=1.0, temperature="fixed")
    labels = torch.from_numpy(label_map())[None]
    features = torch.randn(1, 45, 5, 9)
    head.predict_code = torch.nn.Conv2d(45, P, 1)
    optimiser = torch.optim.Adam(head.predict_code.parameters(), lr=0.03)
    losses = []
    for _ in range(150):
        optimiser.zero_grad()
        loss = head.loss(head(features, height=40, width=72), labels).total
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.01 * losses[0]


@pytest.mark.parametrize("temperature", ["learned", "fixed", "off"])
def test_temperatures(make_label_pca: MakeLabelPCA, temperature: str) -> None:
    label_pca = make_label_pca(block_side=R, num_classes=C, num_components=P)
    head = head_of(label_pca, temperature=temperature, temperature_init=0.2)
    x: Tensor = torch.randn(1, 5, 5, 9)
    output = head(x, height=40, width=72)
    assert output.low_resolution_NKhw is not None
    expected = F.pixel_shuffle(
        F.conv2d(output.low_resolution_NKhw, torch.tensor(label_pca.basis_DP).float()[..., None, None]), R
    )
    value = 1.0 if temperature == "off" else 0.2
    torch.testing.assert_close(output.logits_NCHW, expected / value, rtol=1e-4, atol=1e-4)
    assert float(head.temperature) == pytest.approx(value)
    trained = {name for name, parameter in head.named_parameters() if parameter.requires_grad}
    assert ("log_temperature" in trained) == (temperature == "learned")


def test_another_hidden_width_is_refused() -> None:
    config = DUpsampleConfig(num_components=P)
    with pytest.raises(ValueError, match="decoder's hidden width is 10, the network's hidden_channels asks for 0"):
        block_code(autoencoder(), config, block_side=R, num_classes=C)


def test_next_to_no_enlargement_is_refused() -> None:
    with pytest.raises(ValueError, match="would enlarge by 2 only; it takes the place of bilinear enlargement by 4"):
        DeepLabV3PlusConfig(decoder="dupsample", low_level_features=(2, 16))
    with pytest.raises(ValueError, match="unknown decoder 'bicubic'; known: bilinear, dupsample"):
        DeepLabV3PlusConfig(decoder="bicubic")  # type: ignore[arg-type]


@pytest.mark.parametrize("kernel_size", [2, 3])
def test_a_transposed_head_spreads_each_location_over_the_pixels_around_it(kernel_size: Literal[2, 3]) -> None:
    torch.manual_seed(0)
    head = TransposedHead(5, C, kernel_size=kernel_size)
    x = torch.zeros(1, 5, 4, 6)
    x[0, 2, 1, 3] = 2.0
    scores = head(x, height=7, width=11).logits_NCHW
    assert scores.shape == (1, C, 7, 11)
    expected = torch.zeros_like(scores)
    first = 2 - (kernel_size - 2), 6 - (kernel_size - 2)  # 3x3 is centred on the location's first pixel
    expected[0, :, first[0] : first[0] + kernel_size, first[1] : first[1] + kernel_size] = 2 * head.enlarge.weight[2]
    torch.testing.assert_close(scores, expected)
    assert {name for name, _ in head.named_parameters()} == {"enlarge.weight"}


def test_a_transposed_head_s_loss_is_the_cross_entropy_of_its_scores() -> None:
    torch.manual_seed(0)
    head = TransposedHead(5, C, kernel_size=3)
    output = head(torch.randn(2, 5, 4, 6), height=8, width=12)
    labels = torch.randint(0, C, (2, 8, 12))
    labels[:, :3] = IGNORE_INDEX
    terms = head.loss(output, labels)
    expected = F.cross_entropy(output.logits_NCHW, labels, ignore_index=IGNORE_INDEX)
    torch.testing.assert_close(terms.total, expected)
    torch.testing.assert_close(terms.terms, {"cross_entropy": expected.detach()})
