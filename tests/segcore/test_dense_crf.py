"""The dense CRF against the plainest mean field: all pairs of pixels, in double precision."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from segcore import dense_crf
from segcore.dense_crf import DenseCRFConfig, refine, refine_image

CRF = DenseCRFConfig(iterations=10, w1=5.0, theta_alpha=10.0, theta_beta=20.0, w2=3.0, theta_gamma=3.0)
METHODS = pytest.mark.parametrize("method", ["lattice", "dense"])
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def picture(height: int = 16, width: int = 16, *, seed: int = 0) -> Tensor:
    """Two areas with an edge, shaded and noisy; (1, 3, H, W)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices((height, width))
    inside = (rows - 0.45 * height) ** 2 + (columns - 0.4 * width) ** 2 < (0.3 * width) ** 2
    shade = 20 * rows / height
    planes = [np.where(inside, dark, bright) + shade for dark, bright in ((60, 190), (90, 150), (140, 70))]
    noisy = np.stack(planes) + rng.normal(0, 4, (3, height, width))
    return torch.from_numpy(noisy.clip(0, 255).astype(np.uint8))[None]


def unsure(height: int = 16, width: int = 16, *, num_classes: int = 4, seed: int = 0) -> Tensor:
    """Probabilities that follow the picture badly; (1, C, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, num_classes, 5, 5, generator=generator)
    logits = 1.5 * torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=True)
    return (logits + 0.3 * torch.randn(1, num_classes, height, width, generator=generator)).softmax(dim=1)


def mean_field(probabilities_CHW: Tensor, image_3HW: Tensor, config: DenseCRFConfig) -> NDArray[np.float64]:
    """Written down from the paper's algorithm 1, with its kernels normalised and j = i among them."""
    num_classes, height, width = probabilities_CHW.shape
    unary = -np.log(np.clip(probabilities_CHW.double().numpy().reshape(num_classes, -1), 1e-5, 1))
    rows, columns = np.indices((height, width)).reshape(2, -1).astype(float)
    colours = image_3HW.double().numpy().reshape(3, -1)
    near = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2
    alike = sum((colour[:, None] - colour) ** 2 for colour in colours)
    appearance = np.exp(-near / (2 * config.theta_alpha**2) - alike / (2 * config.theta_beta**2))
    smoothness = np.exp(-near / (2 * config.theta_gamma**2))
    pairwise = sum(
        weight * kernel / np.sqrt(np.outer(kernel.sum(1), kernel.sum(1)))
        for weight, kernel in ((config.w1, appearance), (config.w2, smoothness))
    )
    q = np.exp(-unary) / np.exp(-unary).sum(axis=0)
    for _ in range(config.iterations):
        disagreement = (q.sum(axis=0, keepdims=True) - q) @ pairwise  # Potts: every other class costs alike
        q = np.exp(-unary - disagreement + disagreement.min(axis=0))
        q /= q.sum(axis=0)
    return q.reshape(num_classes, height, width)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [(16, 16), (13, 29)])
def test_dense_marginals_are_those_of_all_pairs(device: str, size: tuple[int, int]) -> None:
    image, probabilities = picture(*size), unsure(*size)
    found = refine(probabilities.to(device), image, replace(CRF, method="dense"))
    assert found.device.type == device
    np.testing.assert_allclose(found[0].cpu().numpy(), mean_field(probabilities[0], image[0], CRF), atol=1e-4)


@pytest.mark.parametrize("size", [(16, 16), (24, 40), (41, 37)])
@pytest.mark.parametrize("seed", [0, 1])
def test_lattice_marginals_are_near_those_of_all_pairs(size: tuple[int, int], seed: int) -> None:
    image, probabilities = picture(*size, seed=seed), unsure(*size, seed=seed)
    expected = mean_field(probabilities[0], image[0], CRF)
    found = refine(probabilities, image, CRF)[0].numpy()
    assert np.abs(found - expected).mean() < 2e-3
    assert np.abs(found - expected).max() < 1e-2
    assert np.abs(probabilities[0].numpy() - expected).max() > 0.1  # there was something to do


@METHODS
def test_probabilities_add_up_to_one_and_sharpen(method: str) -> None:
    probabilities = unsure(num_classes=21)
    found = refine(probabilities, picture(), replace(CRF, method=method))
    assert found.dtype == torch.float32 and found.shape == probabilities.shape
    torch.testing.assert_close(found.sum(dim=1), torch.ones(1, 16, 16), rtol=0, atol=1e-5)
    assert found.amax(dim=1).mean() > probabilities.amax(dim=1).mean()


@METHODS
@pytest.mark.parametrize("num_classes", [1, 2, 8, 9, 21])
def test_without_weights_or_iterations_nothing_but_clipping_happens(method: str, num_classes: int) -> None:
    probabilities = unsure(num_classes=num_classes)
    probabilities[0, 0, 0] = 0
    probabilities /= probabilities.sum(dim=1, keepdim=True).clamp_min(1e-9)
    probabilities[0, 0, 0] = 1 if num_classes == 1 else probabilities[0, 0, 0]
    clipped = probabilities.clamp(1e-5, 1)
    expected = clipped / clipped.sum(dim=1, keepdim=True)
    found = refine(probabilities, picture(), replace(CRF, method=method, w1=0.0, w2=0.0))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert refine(probabilities, picture(), DenseCRFConfig()) is probabilities


@METHODS
@pytest.mark.parametrize("changes", [{"w1": 0.0}, {"w2": 0.0}], ids=["smoothness alone", "appearance alone"])
def test_each_kernel_works_alone(method: str, changes: dict[str, float]) -> None:
    config = replace(CRF, method=method, **changes)
    found = refine(unsure(), picture(), config)[0].numpy()
    np.testing.assert_allclose(found, mean_field(unsure()[0], picture()[0], config), atol=1e-2)


@METHODS
def test_permuting_the_classes_permutes_the_result(method: str) -> None:
    config, order = replace(CRF, method=method), torch.tensor([2, 0, 3, 1])
    found = refine(unsure(), picture(), config)[:, order]
    torch.testing.assert_close(refine(unsure()[:, order], picture(), config), found, rtol=0, atol=1e-5)


@METHODS
def test_a_network_that_knows_nothing_learns_nothing(method: str) -> None:
    uniform = torch.full((1, 5, 16, 16), 0.2)
    torch.testing.assert_close(refine(uniform, picture(), replace(CRF, method=method)), uniform, rtol=0, atol=1e-6)


@METHODS
def test_a_constant_image_is_smoothed_by_position_alone(method: str) -> None:
    grey = torch.full((1, 3, 16, 16), 128, dtype=torch.uint8)
    found = refine(unsure(), grey, replace(CRF, method=method))[0].numpy()
    np.testing.assert_allclose(found, mean_field(unsure()[0], grey[0], CRF), atol=1e-2)


@METHODS
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1)])
def test_images_of_one_pixel_or_row_or_column(method: str, size: tuple[int, int]) -> None:
    config = replace(CRF, method=method)
    found = refine(unsure(*size), picture(*size), config)[0].numpy()
    np.testing.assert_allclose(found, mean_field(unsure(*size)[0], picture(*size)[0], config), atol=1e-2)


def test_an_outlier_takes_the_class_of_what_looks_like_it() -> None:
    probabilities = torch.full((1, 2, 16, 16), 0.1)
    inside = picture()[0, 0] < 130
    probabilities[0, 0][inside], probabilities[0, 1][~inside] = 0.9, 0.9
    probabilities[0, :, 7, 6] = torch.tensor([0.3, 0.7])  # of the disc, and doubted
    assert inside[7, 6] and refine(probabilities, picture(), CRF)[0, :, 7, 6].argmax() == 0
    assert (refine(probabilities, picture(), CRF)[0].argmax(dim=0) == (~inside).long()).all()


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_and_company_do_not_change_a_bit(threads: int) -> None:
    images = torch.cat([picture(24, 40, seed=seed) for seed in range(3)])
    probabilities = torch.cat([unsure(24, 40, seed=seed) for seed in range(3)])
    alone = [
        refine_image(p.numpy(), np.ascontiguousarray(image.permute(1, 2, 0).numpy()), CRF, threads=1)
        for p, image in zip(probabilities, images, strict=True)
    ]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    together = refine(probabilities, images.contiguous(memory_format=torch.channels_last), CRF)
    torch.set_num_threads(before)
    np.testing.assert_array_equal(together.numpy(), np.stack(alone))


def test_certain_probabilities_and_large_weights_stay_finite() -> None:
    certain = torch.nn.functional.one_hot(torch.arange(256).view(1, 16, 16) % 3, 3).permute(0, 3, 1, 2).float()
    found = refine(certain, picture(), replace(CRF, w1=1000.0, w2=1000.0))
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.sum(dim=1), torch.ones(1, 16, 16))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"iterations": -1}, "iterations are -1; expected 0"),
        ({"w1": -1.0}, "w1 is -1.0; expected 0 or more"),
        ({"w2": float("nan")}, "w2 is nan"),
        ({"theta_alpha": 0.0}, "theta_alpha is 0.0; expected more than 0"),
        ({"theta_beta": -3.0}, "theta_beta is -3.0"),
        ({"theta_gamma": float("inf")}, "theta_gamma is inf"),
        ({"method": "windows"}, "method is 'windows'; expected 'lattice' or 'dense'"),
        ({"iterations": 0}, "w1, theta_alpha, theta_beta would be ignored: its iterations are 0"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CRF, **changes)  # type: ignore[arg-type]  # what is refused


@pytest.mark.parametrize(
    "probabilities, image, message",
    [
        (unsure(), picture().float(), "images are torch.float32 .*give it uint8 RGB"),
        (unsure(), picture()[:, :1], "give it uint8 RGB"),
        (unsure(8, 16), picture(), r"shape \(1, 4, 8, 16\) and images of \(1, 3, 16, 16\); .*resize"),
        (unsure(), torch.cat([picture()] * 2), "of one size"),
        (5 * unsure() - 1, picture(), "add up to 1 only within .*take softmax of logits first"),
        (torch.full((1, 2, 16, 16), float("nan")), picture(), "scores are not finite"),
    ],
    ids=["float image", "grey image", "size", "number", "logits", "NaN"],
)
def test_inputs_that_do_not_fit_are_refused(probabilities: Tensor, image: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        refine(probabilities, image, CRF)


def test_dense_refuses_what_would_not_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_crf, "DENSE_PIXELS", 255)
    with pytest.raises(ValueError, match="16 x 16 pixels; method 'dense' takes at most 255: use 'lattice'"):
        refine(unsure(), picture(), replace(CRF, method="dense"))


def test_thetas_that_are_far_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match="lattice cells.*larger thetas"):
        refine(unsure(), picture(), replace(CRF, theta_beta=1e-3))


def test_labels_agree_with_pydensecrf() -> None:
    """Kraehenbuehl's own code, where it is installed (the extra `benchmarks`)."""
    densecrf = pytest.importorskip("pydensecrf.densecrf")
    height, width, num_classes = 60, 80, 5
    image, probabilities = picture(height, width), unsure(height, width, num_classes=num_classes)
    reference = densecrf.DenseCRF2D(width, height, num_classes)
    unary = -np.log(probabilities[0].numpy().clip(1e-5, 1)).reshape(num_classes, -1)
    reference.setUnaryEnergy(np.ascontiguousarray(unary))
    reference.addPairwiseGaussian(sxy=3, compat=3)
    pixels_HW3 = np.ascontiguousarray(image[0].permute(1, 2, 0).numpy())
    reference.addPairwiseBilateral(sxy=20, srgb=13, rgbim=pixels_HW3, compat=10)
    expected = np.array(reference.inference(10)).reshape(num_classes, height, width)
    config = DenseCRFConfig(iterations=10, theta_alpha=20.0)
    found = refine(probabilities, image, config)[0].numpy()
    assert (found.argmax(axis=0) == expected.argmax(axis=0)).mean() > 0.999
    np.testing.assert_allclose(found, expected, atol=1e-2)
