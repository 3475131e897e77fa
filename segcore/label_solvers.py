"""Label codes learned by gradient descent, to compare with the label PCA.

Wanted is the smallest mean over blocks of |v - decode(encode(v))|^2. Ignored pixels are zeros in v and count, as in
`segcore.label_pca`, so that captured energy means the same.

| solver | encoder | decoder | steps |
|---|---|---|---|
| `sgd` | P v | W x | momentum, on both free matrices |
| `orthogonal_sgd` | W^T v | W x with W^T W = I | momentum, W drawn back by QR |
| `autoencoder` | D -> hidden (ReLU) -> P | P -> hidden (ReLU) -> D | Adam |

No solver is centred: the linear ones have no biases, and the autoencoder has none in its last layer, which a hidden
unit can stand in for. No linear code beats the PCA of the same length (Eckart and Young).

- Blocks enter as v/R, of norm at most 1, in minibatches; the loss is expanded, |v|^2 - 2 (V W) . a + a . (W^T W) a for
  the activations a before the last layer, and V W costs what the corners of regions cost (`segcore.label_products`).
- Steps of the linear solvers are in units of 1/lambda, the top eigenvalue of the blocks' mean second moment (about
  the commonest class's share of all pixels), which bounds the curvature. Learning rates rise over the first 5 % of the
  steps and fall as a cosine. Gradients are clipped at lambda: without that `sgd` diverged at less than half the
  learning rate, because momentum overshoots while the leading directions grow.
- With W^T W = I and P = W^T the loss's gradient is Oja's subspace rule, -2 (I - W W^T) v v^T W, a tangent.
- Units at the end. `sgd`: columns of W have norm 1. `orthogonal_sgd`: principal axes within its span, as a PCA's, with
  canonical signs. `autoencoder`: the mean squared code is the captured energy per block, as a PCA's is.

Equal rows, configuration and number of threads give equal bits; no global random state is read or changed.

Source: Tian et al., "Decoders matter for semantic segmentation", CVPR 2019, arXiv 1903.02120, section 3.1, which names
SGD, PCA and an autoencoder and gives no settings. Oja, "A simplified neuron model as a principal component analyzer",
J. Math. Biol. 1982, for one column; Absil, Mahony and Sepulchre, "Optimization algorithms on matrix manifolds", 2008,
section 4.1, for the retraction by QR.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segcore.label_code import Dense, LearnedCode
from segcore.label_pca import canonical_signs
from segcore.label_products import OneHotBlocks, multiply
from segcore.label_rows import LabelRows

Solver = Literal["sgd", "orthogonal_sgd", "autoencoder"]


class Defaults(NamedTuple):
    """What a solver takes where the configuration leaves it open."""

    steps: int
    learning_rate: float


SOLVERS: dict[str, Defaults] = {
    "sgd": Defaults(steps=2000, learning_rate=0.5),
    "orthogonal_sgd": Defaults(steps=1000, learning_rate=0.5),
    "autoencoder": Defaults(steps=2500, learning_rate=5e-3),
}
"""Solvers by name, with settings that were measured on CamVid (docs/benchmarks.md, section label_codes)."""

WARMUP = 0.05
"""Share of the steps over which the learning rate rises."""

POWER_BLOCKS, POWER_STEPS = 2048, 20
"""For lambda, to a few per cent."""

BLOCKS_AT_ONCE = 4096
"""Of the measurement at the end."""

Layer = tuple[Tensor, Tensor]
"""Weight and bias."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnConfig:
    """How a code is learned."""

    steps: int | None = None
    """Minibatches. None: the solver's own number."""
    batch_size: int = 512
    """Blocks per step; all of them where there are fewer."""
    learning_rate: float | None = None
    """Highest learning rate: Adam's, or in units of 1/lambda for the linear solvers. None: the solver's own."""
    momentum: float = 0.9
    """Of the linear solvers."""
    hidden_channels: int = 128
    """Width of the autoencoder's hidden layers."""
    seed: int = 0
    """Of the start and the order of blocks."""

    def __post_init__(self) -> None:
        for name, value in (
            ("steps", self.steps),
            ("batch_size", self.batch_size),
            ("hidden_channels", self.hidden_channels),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate is {self.learning_rate}, expected above 0")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}, expected 0 up to but not 1")


def resolved(config: LearnConfig, solver: str) -> LearnConfig:
    """The configuration with the solver's own settings where it leaves them open.

    Raises:
        ValueError: unknown solver.
    """
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}; known: {', '.join(SOLVERS)}")
    own = SOLVERS[solver]
    return replace(config, steps=config.steps or own.steps, learning_rate=config.learning_rate or own.learning_rate)


class _Network(NamedTuple):
    """Weights are inputs x outputs, but D x inputs in the decoder's last layer: one column each that a block meets."""

    encoder: list[Layer]
    decoder: list[Layer]


def learn_code(
    solver: str,
    labels_MS: NDArray[np.uint8],
    *,
    block_side: int,
    num_classes: int,
    num_components: int,
    config: LearnConfig | None = None,
    progress: Callable[[int], None] | None = None,
) -> LearnedCode:
    """Learn a code of label blocks; those without a valid pixel are left out.

    Args:
        solver: key of `SOLVERS`.
        labels_MS: blocks of labels, M x R*R, as `segcore.label_code.to_blocks` cuts them.
        block_side: R.
        num_classes: C.
        num_components: P, 1 to D.
        config: None for the defaults.
        progress: is told of each step, as progress(1).

    Raises:
        ValueError: unknown solver, labels that are not such blocks, no valid pixel, P outside 1..D, or a result that is
            worse than zeros: training diverged, or had hardly begun.
    """
    if labels_MS.ndim != 2 or labels_MS.shape[1] != block_side**2:
        raise ValueError(
            f"found labels of shape {labels_MS.shape}; expected (blocks, {block_side**2}) for blocks of side "
            f"{block_side}, as label_code.to_blocks cuts them"
        )
    rows = LabelRows.zero(block_side, num_classes)
    rows.update(labels_MS.reshape(-1, block_side))  # a column of blocks
    return learn_code_of_rows(solver, rows, num_components=num_components, config=config, progress=progress)


def learn_code_of_rows(
    solver: str,
    rows: LabelRows,
    *,
    num_components: int,
    config: LearnConfig | None = None,
    progress: Callable[[int], None] | None = None,
) -> LearnedCode:
    """The same from compressed blocks; their order is part of what makes equal bits.

    Raises:
        ValueError: see `learn_code`.
    """
    config = resolved(config or LearnConfig(), solver)
    if not 1 <= num_components <= rows.num_entries:
        raise ValueError(
            f"num_components is {num_components}; blocks of side {rows.block_side} with {rows.num_classes} classes "
            f"have {rows.num_entries} entries, so choose 1 to {rows.num_entries}"
        )
    if rows.num_blocks == 0:
        raise ValueError("the label blocks hold no valid pixel; check the split and the labels' ignore value")
    generator = torch.Generator().manual_seed(config.seed)
    network = _start(solver, rows.num_entries, num_components, config.hidden_channels, generator)
    _train(solver, network, rows, config, generator, progress)
    return _finish(solver, network, rows)


def _start(solver: str, entries: int, components: int, hidden: int, generator: torch.Generator) -> _Network:
    def random(rows: int, columns: int, scale: float) -> Tensor:
        return torch.randn(rows, columns, generator=generator).mul_(scale).requires_grad_()

    def zeros(size: int) -> Tensor:
        return torch.zeros(size, requires_grad=True)

    no_bias_D = torch.zeros(entries)
    if solver == "autoencoder":
        encoder = [
            (random(entries, hidden, 1.0), zeros(hidden)),
            (random(hidden, components, hidden**-0.5), zeros(components)),
        ]
        inner = (random(components, hidden, components**-0.5), zeros(hidden))
        return _Network(encoder, [inner, (random(entries, hidden, (entries * hidden) ** -0.5), no_bias_D)])
    basis_DP = torch.linalg.qr(torch.randn(entries, components, generator=generator))[0].contiguous()
    encoder_DP = basis_DP.requires_grad_()
    decoder_DP = encoder_DP if solver == "orthogonal_sgd" else basis_DP.detach().clone().requires_grad_()
    return _Network([(encoder_DP, torch.zeros(components))], [(decoder_DP, no_bias_D)])


def _train(
    solver: str,
    network: _Network,
    rows: LabelRows,
    config: LearnConfig,
    generator: torch.Generator,
    progress: Callable[[int], None] | None,
) -> None:
    blocks = OneHotBlocks.from_rows(rows, scale=1 / rows.block_side)
    assert config.steps is not None and config.learning_rate is not None, "resolved"
    steps = config.steps
    rate = config.learning_rate
    top = _top_eigenvalue(blocks, generator)
    unique = {id(part): part for layer in (*network.encoder, *network.decoder) for part in layer if part.requires_grad}
    parameters = list(unique.values())
    optimiser: torch.optim.Optimizer
    if solver == "autoencoder":
        optimiser = torch.optim.Adam(parameters, lr=rate)
    else:
        rate /= top
        optimiser = torch.optim.SGD(parameters, lr=rate, momentum=config.momentum)
    for step, indices in zip(range(steps), _minibatches(blocks.num_blocks, config.batch_size, generator), strict=False):
        warmth = min(1.0, (step + 1) / (WARMUP * steps))
        for group in optimiser.param_groups:
            group["lr"] = rate * warmth * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimiser.zero_grad()
        loss = _loss(network, blocks.select(indices))
        loss.backward()
        if not math.isfinite(float(torch.nn.utils.clip_grad_norm_(parameters, top))):
            break  # the measurement at the end refuses it
        optimiser.step()
        if solver == "orthogonal_sgd":
            _orthonormalise(parameters[0])
        if progress is not None:
            progress(1)


def _minibatches(num_blocks: int, batch_size: int, generator: torch.Generator) -> Iterator[NDArray[np.int64]]:
    """Indices for ever: each block once, in random order, and again in another. A last minibatch may be smaller."""
    while True:
        order = torch.randperm(num_blocks, generator=generator).numpy()
        for start in range(0, num_blocks, batch_size):
            yield np.sort(order[start : start + batch_size])


def _loss(network: _Network, blocks: OneHotBlocks) -> Tensor:
    """Mean over blocks of |v - v^|^2 - |v|^2; |v|^2 does not depend on the parameters."""
    codes_BP = _encode(network, blocks)
    activations_BO = _before_last(network, codes_BP)
    last_DO = network.decoder[-1][0]
    tied = last_DO is network.encoder[0][0]
    products_BO = codes_BP if tied else multiply(blocks, last_DO)
    norms = (activations_BO @ (last_DO.T @ last_DO) * activations_BO).sum()
    return (norms - 2 * (products_BO * activations_BO).sum()) / blocks.num_blocks


def _encode(network: _Network, blocks: OneHotBlocks) -> Tensor:
    (first_DO, bias_O), *rest = network.encoder
    x = multiply(blocks, first_DO) + bias_O
    for weight, bias in rest:
        x = x.relu() @ weight + bias
    return x


def _before_last(network: _Network, codes_BP: Tensor) -> Tensor:
    x = codes_BP
    for weight, bias in network.decoder[:-1]:
        x = (x @ weight + bias).relu()
    return x


@torch.no_grad()
def _orthonormalise(basis_DP: Tensor) -> None:
    """QR retraction; with R's diagonal positive it is the identity on orthonormal columns."""
    q_DP, r_PP = torch.linalg.qr(basis_DP)
    basis_DP.copy_(q_DP * torch.where(r_PP.diagonal() < 0, -1.0, 1.0))


def _top_eigenvalue(blocks: OneHotBlocks, generator: torch.Generator) -> float:
    """Of the mean second moment of some blocks, by power iterations."""
    some = blocks.select(np.sort(torch.randperm(blocks.num_blocks, generator=generator).numpy()[:POWER_BLOCKS]))
    vector_D1: NDArray[Any] = torch.randn(blocks.num_entries, 1, generator=generator).numpy()
    for _ in range(POWER_STEPS):
        vector_D1 = some.transposed_times(some.times(vector_D1 / np.linalg.norm(vector_D1)))
    return float(np.linalg.norm(vector_D1)) / some.num_blocks


@torch.no_grad()
def _finish(solver: str, network: _Network, rows: LabelRows) -> LearnedCode:
    """In double precision: bring the code to its units, and measure it on all blocks."""
    blocks = OneHotBlocks.from_rows(rows, dtype=np.float64)
    encoder, decoder = ([(weight.double(), bias.double()) for weight, bias in part] for part in network)
    total_energy = float(rows.counts_D().sum())
    if solver == "orthogonal_sgd":
        axes_DP = _principal_axes(encoder[0][0], blocks)
        encoder, decoder = [(axes_DP, encoder[0][1])], [(axes_DP, decoder[0][1])]
    elif solver == "sgd":
        norms_P = decoder[0][0].norm(dim=0)
        norms_P = torch.where(norms_P > 0, norms_P, 1.0)
        encoder, decoder = _scaled(encoder, decoder, norms_P)
    else:  # it was trained on v/R
        encoder[0] = (encoder[0][0] / rows.block_side, encoder[0][1])
        decoder[-1] = (decoder[-1][0] * rows.block_side, decoder[-1][1])
    sums_P, squares_P, captured = _measure(_Network(encoder, decoder), blocks)
    if not captured > 0:
        raise ValueError(
            f"the code learned by {solver!r} captures {captured / total_energy:.3g} of the energy, no more than zeros "
            "would; choose a lower learning_rate or more steps"
        )
    if solver == "autoencoder":
        energy = float(squares_P.sum())
        factor = math.sqrt(captured / energy) if energy > 0 else 1.0
        encoder, decoder = _scaled(encoder, decoder, torch.full_like(sums_P, factor))
        sums_P, squares_P = sums_P * factor, squares_P * factor**2
    return LearnedCode(
        solver=solver,
        encoder=tuple(Dense(np.ascontiguousarray(weight.T.numpy()), bias.numpy()) for weight, bias in encoder),
        decoder=tuple(
            Dense(np.ascontiguousarray(weight.numpy() if weight is decoder[-1][0] else weight.T.numpy()), bias.numpy())
            for weight, bias in decoder
        ),
        mean_code_P=(sums_P / rows.num_blocks).numpy(),
        mean_square_P=(squares_P / rows.num_blocks).numpy(),
        captured_energy=captured / total_energy,
        block_side=rows.block_side,
        num_classes=rows.num_classes,
        num_blocks=rows.num_blocks,
    )


def _scaled(encoder: list[Layer], decoder: list[Layer], factor_P: Tensor) -> tuple[list[Layer], list[Layer]]:
    """The same function with codes multiplied by a factor each."""
    *before, (weight, bias) = encoder
    encoder = [*before, (weight * factor_P, bias * factor_P)]
    (weight, bias), *after = decoder
    weight = weight / factor_P[:, None] if after else weight / factor_P
    return encoder, [(weight, bias), *after]


def _principal_axes(basis_DP: Tensor, blocks: OneHotBlocks) -> Tensor:
    """Orthonormal columns of the same span by falling mean square of their codes, with canonical signs."""
    basis_DP = torch.linalg.qr(basis_DP)[0].contiguous()
    moments_PP = torch.zeros(basis_DP.shape[1], basis_DP.shape[1], dtype=torch.float64)
    for chunk in _chunks(blocks):
        codes_BP = multiply(chunk, basis_DP)
        moments_PP += codes_BP.T @ codes_BP
    axes_PP = torch.linalg.eigh(moments_PP)[1].flip(1)
    turned_DP = (basis_DP @ axes_PP).numpy()
    return torch.from_numpy(turned_DP * canonical_signs(turned_DP))


def _measure(network: _Network, blocks: OneHotBlocks) -> tuple[Tensor, Tensor, float]:
    """Sums over all blocks: of the code, of its square, and captured energy."""
    sums_P = squares_P = torch.zeros(network.encoder[-1][0].shape[1], dtype=torch.float64)
    captured = 0.0
    for chunk in _chunks(blocks):
        codes_BP = _encode(network, chunk)
        sums_P, squares_P = sums_P + codes_BP.sum(dim=0), squares_P + codes_BP.square().sum(dim=0)
        captured -= float(_loss(network, chunk)) * chunk.num_blocks
    return sums_P, squares_P, captured


def _chunks(blocks: OneHotBlocks) -> Iterator[OneHotBlocks]:
    for start in range(0, blocks.num_blocks, BLOCKS_AT_ONCE):
        yield blocks.select(slice(start, start + BLOCKS_AT_ONCE))
