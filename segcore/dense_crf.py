"""Fully connected CRF: sharpens class probabilities along the edges of the image that they belong to.

Source: Kraehenbuehl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials",
NIPS 2011, arXiv 1210.5644. Labels x have the energy

    E(x) = sum_i U_i(x_i) + sum_{i<j} [x_i != x_j] (w1 k1(i, j) + w2 k2(i, j)),
    k1 = exp(-|p_i - p_j|^2 / (2 theta_alpha^2) - |I_i - I_j|^2 / (2 theta_beta^2)),
    k2 = exp(-|p_i - p_j|^2 / (2 theta_gamma^2)),

with U = -ln p of the network's probabilities, p positions in pixels and I colours from 0 to 255. Mean field starts from
Q = softmax(-U) and repeats Q_i = softmax(-U_i + sum_k w_k sum_j k_k(i, j) Q_j). As in the authors' code, each kernel is
normalised symmetrically (D^-1/2 K D^-1/2, D the sums of its rows), j = i is part of the sums (the paper leaves it out),
and p is clipped to at least 1e-5 first, as pydensecrf does.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segcore import dense_crf_kernel as compiled
from segcore.lanes import LANES
from segcore.permutohedral import Lattice, Workers, build_lattice

SMALLEST_PROBABILITY = 1e-5
DENSE_PIXELS = 2**14
"""Most pixels of an image for `method="dense"`: three matrices of 1 GiB are then in memory at once."""

_PARTS_PER_THREAD = 2  # so that a thread which is held up keeps the others waiting less


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseCRFConfig:
    """A dense CRF after the network; the names are the paper's, the values those of pydensecrf's example."""

    iterations: int = 0
    """Mean-field updates; papers take 5 to 10. 0: no CRF."""
    w1: float = 10.0
    """Weight of the appearance kernel: near pixels of similar colour have one class."""
    theta_alpha: float = 80.0
    """Its standard deviation in pixels."""
    theta_beta: float = 13.0
    """Its standard deviation in colour, of 0 to 255."""
    w2: float = 3.0
    """Weight of the smoothness kernel: near pixels have one class."""
    theta_gamma: float = 3.0
    """Its standard deviation in pixels."""
    method: Literal["lattice", "dense"] = "lattice"
    """Permutohedral lattice on the CPU: approximate, for images of any size. Or the sum over all pairs of pixels on the
    network's device: exact, for small images."""

    def __post_init__(self) -> None:
        if self.method not in ("lattice", "dense"):
            raise ValueError(f"the CRF's method is {self.method!r}; expected 'lattice' or 'dense'")
        if self.iterations < 0:
            raise ValueError(f"the CRF's iterations are {self.iterations}; expected 0 (no CRF) or more")
        for name in ("w1", "w2"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"the CRF's {name} is {getattr(self, name)}; expected 0 or more")
        for name in ("theta_alpha", "theta_beta", "theta_gamma"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"the CRF's {name} is {getattr(self, name)}; expected more than 0")
        changed = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        if self.iterations == 0 and changed:
            raise ValueError(f"the CRF's {', '.join(changed)} would be ignored: its iterations are 0; give it 10, say")


def refine(probabilities_NCHW: Tensor, images_N3HW: Tensor, config: DenseCRFConfig) -> Tensor:
    """Class probabilities after mean field, on the device of those that are given; images side by side on a CPU.

    Args:
        probabilities_NCHW: float32, at the images' size; those of a pixel add up to 1.
        images_N3HW: uint8 RGB, on any device, in any memory layout.
        config: see there; without iterations the probabilities come back as they are.

    Raises:
        ValueError: sizes or types do not fit; probabilities are none (logits, or not finite); see `build_lattice`;
            the images have too many pixels for `method="dense"`.
    """
    _check(probabilities_NCHW, images_N3HW)
    if config.iterations == 0:
        return probabilities_NCHW
    if config.method == "dense":
        pairs = zip(probabilities_NCHW, images_N3HW.to(probabilities_NCHW.device), strict=True)
        return torch.stack([_refine_densely(*pair, config) for pair in pairs])
    planes_NCHW = probabilities_NCHW.float().contiguous().cpu().numpy()
    images_NHW3 = images_N3HW.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    count = len(planes_NCHW)
    threads = max(1, torch.get_num_threads() // count)
    with ThreadPoolExecutor(min(count, torch.get_num_threads())) as pool:
        refined = list(
            pool.map(lambda n: refine_image(planes_NCHW[n], images_NHW3[n], config, threads=threads), range(count))
        )
    return torch.from_numpy(np.stack(refined)).to(probabilities_NCHW.device)


def refine_image(
    probabilities_CHW: NDArray[np.float32],
    image_HW3: NDArray[np.uint8],
    config: DenseCRFConfig,
    *,
    threads: int,
) -> NDArray[np.float32]:
    """`refine` for one image by the lattice, whatever `method` says. The number of threads does not change the result.

    Raises:
        ValueError: see `build_lattice`.
    """
    num_classes, height, width = probabilities_CHW.shape
    num_pixels = height * width
    with _workers(threads) as workers:
        mean_field = _MeanField.of(probabilities_CHW.reshape(num_classes, num_pixels), workers)
        lattices = _lattices(image_HW3, config, workers)
        tables = [lattice.tables(mean_field.row_width) for lattice in lattices]
        mean_field.update([], [], workers)
        for _ in range(config.iterations if lattices else 0):
            blurred = [
                lattice.blurred(mean_field.rows, pair, width=mean_field.row_width, workers=workers)
                for lattice, pair in zip(lattices, tables, strict=True)
            ]
            mean_field.update(lattices, blurred, workers)
        return mean_field.planes(num_classes, workers).reshape(num_classes, height, width)


@dataclass(frozen=True, slots=True, eq=False)
class _MeanField:
    """-U and Q of an image's pixels: rows of `row_width` classes, padded to whole registers."""

    logits: NDArray[np.float32]
    rows: NDArray[np.float32]
    row_width: int

    @staticmethod
    def of(probabilities_CX: NDArray[np.float32], workers: Workers) -> "_MeanField":
        """-U; Q is not set yet."""
        num_classes, num_pixels = probabilities_CX.shape
        row_width = -(-num_classes // LANES) * LANES
        logits = np.empty(num_pixels * row_width, np.float32)

        def convert(first: int, last: int) -> None:
            clipped_Cx = np.clip(probabilities_CX[:, first:last], np.float32(SMALLEST_PROBABILITY), np.float32(1))
            compiled.to_rows(np.log(clipped_Cx, out=clipped_Cx), row_width, first, logits)

        workers.run(convert, workers.share(num_pixels))
        return _MeanField(logits, np.empty_like(logits), row_width)

    def update(self, lattices: list[Lattice], blurred: list[NDArray[np.float32]], workers: Workers) -> None:
        """Q = softmax(-U + messages), of up to two kernels."""
        num_pixels = len(self.logits) // self.row_width
        none = (np.zeros(0, np.float32), np.zeros((num_pixels, 0), np.int32), np.zeros((num_pixels, 0), np.float32))
        messages = [
            (table, lattice.corners_XS, lattice.weights_XS) for table, lattice in zip(blurred, lattices, strict=True)
        ]
        one, other = [*messages, none, none][:2]
        workers.run(
            lambda first, last: compiled.update(self.logits, self.row_width, *one, *other, first, last, self.rows),
            workers.share(num_pixels),
        )

    def planes(self, num_classes: int, workers: Workers) -> NDArray[np.float32]:
        """Q as one plane per class."""
        num_pixels = len(self.rows) // self.row_width
        probabilities_CX = np.empty((num_classes, num_pixels), np.float32)
        workers.run(
            lambda first, last: compiled.to_planes(self.rows, self.row_width, first, last, probabilities_CX),
            workers.share(num_pixels),
        )
        return probabilities_CX


@contextmanager
def _workers(threads: int) -> Iterator[Workers]:
    with ThreadPoolExecutor(threads) as pool:
        yield Workers(pool=pool, num_parts=1 if threads == 1 else _PARTS_PER_THREAD * threads)


def _lattices(image_HW3: NDArray[np.uint8], config: DenseCRFConfig, workers: Workers) -> list[Lattice]:
    """Of the kernels that have a weight."""
    colours_X3 = image_HW3.reshape(-1, 3).astype(np.float32)
    height, width = image_HW3.shape[:2]
    row, column = np.divmod(np.arange(height * width, dtype=np.int32), np.int32(width))
    positions_X2 = np.stack([column, row], axis=1).astype(np.float32)
    kernels = []
    if config.w1 > 0:
        appearance = [positions_X2 / np.float32(config.theta_alpha), colours_X3 / np.float32(config.theta_beta)]
        kernels.append((np.concatenate(appearance, axis=1), config.w1))
    if config.w2 > 0:
        kernels.append((positions_X2 / np.float32(config.theta_gamma), config.w2))
    return [
        build_lattice(features_XF, workers).normalised(factor=weight, workers=workers)
        for features_XF, weight in kernels
    ]


def _refine_densely(probabilities_CHW: Tensor, image_3HW: Tensor, config: DenseCRFConfig) -> Tensor:
    """Mean field with the kernels' sum as one matrix."""
    num_classes, height, width = probabilities_CHW.shape
    if height * width > DENSE_PIXELS:
        raise ValueError(
            f"the image has {height} x {width} pixels; method 'dense' takes at most {DENSE_PIXELS:,}: use 'lattice'"
        )
    logits_XC = probabilities_CHW.float().clamp(SMALLEST_PROBABILITY, 1).log().flatten(1).T
    device = logits_XC.device
    grid = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    positions_X2 = torch.stack(grid, dim=-1).reshape(-1, 2).float()
    colours_X3 = image_3HW.flatten(1).T.float()
    appearance_X5 = torch.cat([positions_X2 / config.theta_alpha, colours_X3 / config.theta_beta], dim=1)
    kernels_XX = config.w1 * _normalised_kernel(appearance_X5)
    kernels_XX += config.w2 * _normalised_kernel(positions_X2 / config.theta_gamma)
    q_XC = logits_XC.softmax(dim=1)
    for _ in range(config.iterations):
        q_XC = torch.addmm(logits_XC, kernels_XX, q_XC).softmax(dim=1)
    return q_XC.T.reshape(num_classes, height, width)


def _normalised_kernel(features_XF: Tensor) -> Tensor:
    kernel_XX = torch.cdist(features_XF, features_XF, compute_mode="donot_use_mm_for_euclid_dist")
    kernel_XX = kernel_XX.square_().mul_(-0.5).exp_()
    norm_X = kernel_XX.sum(dim=1).rsqrt()
    return kernel_XX.mul_(norm_X).mul_(norm_X[:, None])


def _check(probabilities_NCHW: Tensor, images_N3HW: Tensor) -> None:
    if images_N3HW.dtype != torch.uint8 or images_N3HW.ndim != 4 or images_N3HW.shape[1] != 3:
        raise ValueError(
            f"the images are {images_N3HW.dtype} of shape {tuple(images_N3HW.shape)}; the CRF compares colours of "
            "0 to 255: give it uint8 RGB (N, 3, H, W), as it was before normalisation"
        )
    if probabilities_NCHW.ndim != 4 or (probabilities_NCHW.shape[0], *probabilities_NCHW.shape[2:]) != (
        images_N3HW.shape[0],
        *images_N3HW.shape[2:],
    ):
        raise ValueError(
            f"probabilities of shape {tuple(probabilities_NCHW.shape)} and images of {tuple(images_N3HW.shape)}; "
            "expected (N, C, H, W) and (N, 3, H, W) of one size: resize the probabilities to the images first"
        )
    if not torch.isfinite(probabilities_NCHW).all():
        raise ValueError("the network's scores are not finite; try --inference.precision float32, or other weights")
    furthest = float((probabilities_NCHW.sum(dim=1) - 1).abs().max())
    if float(probabilities_NCHW.amin()) < -1e-3 or furthest > 1e-2:
        raise ValueError(
            f"the probabilities of a pixel add up to 1 only within {furthest:.3g}; expected probabilities: "
            "take softmax of logits first"
        )
