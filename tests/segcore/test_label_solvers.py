"""Learned label codes against the label PCA, their definition, and the parts that take them."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segcore import IGNORE_INDEX
from segcore.label_blocks import BlockStatistics
from segcore.label_code import LearnedCode, encode_blocks, project, reconstruct, to_blocks
from segcore.label_pca import LabelPCA, canonical_signs, solve
from segcore.label_recovery import Recovery
from segcore.label_solvers import SOLVERS, LearnConfig, learn_code
from segcore.models.block_codes import DUpsampleConfig, block_code
from segcore.models.heads import DUpsampleHead, pointwise

R, C, P, HIDDEN = 8, 4, 10, 32
D = C * R * R
CONFIG = LearnConfig(steps=200, batch_size=128, hidden_channels=HIDDEN)


def region_maps(count: int, *, height: int = 48, width: int = 64) -> list[NDArray[np.uint8]]:
    """Half-planes of random slope, some ignored pixels."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    maps = []
    for _ in range(count):
        labels = np.zeros((height, width), np.uint8)
        for c in range(1, C):
            a, b, offset = rng.normal(size=3)
            labels[a * (rows - height / 2) + b * (columns - width / 2) > 12 * offset] = c
        labels[rng.random(labels.shape) < 0.02] = IGNORE_INDEX
        labels[:R, :R] = IGNORE_INDEX  # a block without a valid pixel
        maps.append(labels)
    return maps


@cache
def maps() -> list[NDArray[np.uint8]]:
    return region_maps(16)


@cache
def label_blocks() -> NDArray[np.uint8]:
    return np.concatenate([to_blocks(labels, R) for labels in maps()])


@cache
def pca() -> LabelPCA:
    statistics = BlockStatistics.zero(R, C)
    for labels in maps():
        statistics.update(labels)
    return solve(statistics, num_components=P)


def learn(solver: str, config: LearnConfig = CONFIG, blocks: NDArray[np.uint8] | None = None) -> LearnedCode:
    blocks = label_blocks() if blocks is None else blocks
    return learn_code(solver, blocks, block_side=R, num_classes=C, num_components=P, config=config)


@cache
def learned(solver: str) -> LearnedCode:
    return learn(solver)


def one_hot(blocks_MS: NDArray[np.uint8]) -> NDArray[np.float64]:
    rows: NDArray[np.float64] = (blocks_MS[:, None] == np.arange(C)[:, None]).reshape(-1, D).astype(np.float64)
    return rows


def arrays(code: LearnedCode) -> list[NDArray[np.float64]]:
    layers = [part for layer in (*code.encoder, *code.decoder) for part in layer]
    return [*layers, code.mean_code_P, code.mean_square_P, np.array(code.captured_energy)]


@pytest.mark.parametrize("solver", SOLVERS)
def test_captured_energy_and_moments_are_those_of_the_reconstruction(solver: str) -> None:
    code = learned(solver)
    blocks = label_blocks()[(label_blocks() != IGNORE_INDEX).any(axis=1)]
    codes = encode_blocks(code.encoder, blocks, C)
    values = codes
    for index, layer in enumerate(code.decoder):
        values = (np.maximum(values, 0) if index else values) @ layer.weight_OI.T + layer.bias_O
    truth = one_hot(blocks)
    assert code.captured_energy == pytest.approx(1 - ((truth - values) ** 2).sum() / truth.sum(), abs=1e-9)
    np.testing.assert_allclose(code.mean_code_P, codes.mean(axis=0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(code.mean_square_P, (codes**2).mean(axis=0), rtol=1e-9)
    assert (code.solver, code.num_blocks, code.num_components) == (solver, len(blocks), P)


def test_orthogonal_sgd_comes_within_a_percent_of_the_pca() -> None:
    code = learned("orthogonal_sgd")
    assert 0.99 * pca().captured_energy < code.captured_energy <= pca().captured_energy
    (decoder,) = code.decoder
    np.testing.assert_allclose(decoder.weight_OI.T @ decoder.weight_OI, np.eye(P), atol=1e-12)
    np.testing.assert_array_equal(code.encoder[0].weight_OI, decoder.weight_OI.T)
    assert (canonical_signs(decoder.weight_OI) == 1).all()
    codes = encode_blocks(code.encoder, label_blocks(), C)
    moments = codes.T @ codes
    np.testing.assert_allclose(moments, np.diag(np.diag(moments)), atol=1e-6 * moments.max())
    assert (np.diff(code.mean_square_P) <= 0).all()
    leading = np.abs((decoder.weight_OI * pca().basis_DP).sum(axis=0))[:3]
    assert (leading > 0.99).all()


def test_sgd_comes_within_five_percent_of_the_pca() -> None:
    code = learned("sgd")
    assert 0.95 * pca().captured_energy < code.captured_energy <= pca().captured_energy
    np.testing.assert_allclose((code.decoder[0].weight_OI ** 2).sum(axis=0), 1)


def test_the_autoencoder_is_comparable_and_has_the_units_of_a_pca() -> None:
    code = learned("autoencoder")
    assert code.captured_energy > 0.98 * pca().captured_energy
    energy_per_block = one_hot(label_blocks()).sum() / code.num_blocks
    assert code.mean_square_P.sum() == pytest.approx(code.captured_energy * energy_per_block)
    assert pca().mean_square_P.sum() == pytest.approx(pca().captured_energy * energy_per_block)


@pytest.mark.parametrize("solver", SOLVERS)
def test_labels_come_back_about_as_well_as_from_a_pca(solver: str) -> None:
    state, reference = Recovery.zero(C), Recovery.zero(C)
    for labels in maps():
        state.update(learned(solver), labels[:-3, :-5])
        reference.update(pca(), labels[:-3, :-5])
    found, expected = (np.trace(one.confusion["basis"]) / one.confusion["basis"].sum() for one in (state, reference))
    assert found > expected - 0.01


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_head_takes_the_code_and_expands_it_alike(solver: str) -> None:
    code = learned(solver)
    config = DUpsampleConfig(num_components=P, hidden_channels=HIDDEN if solver == "autoencoder" else 0)
    head = DUpsampleHead(pointwise(5), config, block_code(code, config, block_side=R, num_classes=C))
    codes = project(code, maps()[0])
    with torch.no_grad():
        scaled = torch.from_numpy(codes).float()[None] / head.scale_P[:, None, None]
        scores = head.dupsample(head.hidden(scaled))[0]
    np.testing.assert_allclose(scores.numpy(), reconstruct(code, codes), atol=1e-4)


@pytest.mark.parametrize("solver", SOLVERS)
def test_equal_inputs_give_equal_bits_and_no_global_random_state_is_touched(solver: str) -> None:
    short = LearnConfig(steps=20, batch_size=64, hidden_channels=HIDDEN)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    first = learn(solver, short)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert str(numpy_state) == str(np.random.get_state())
    torch.manual_seed(17)
    second = learn(solver, short)
    assert all(one.tobytes() == other.tobytes() for one, other in zip(arrays(first), arrays(second), strict=True))
    other = learn(solver, LearnConfig(steps=20, batch_size=64, hidden_channels=HIDDEN, seed=1))
    assert arrays(other)[0].tobytes() != arrays(first)[0].tobytes()


@pytest.mark.parametrize("solver", SOLVERS)
def test_blocks_without_a_valid_pixel_do_not_matter(solver: str) -> None:
    short = LearnConfig(steps=20, batch_size=64, hidden_channels=HIDDEN)
    ignored = np.full((50, R * R), IGNORE_INDEX, np.uint8)
    first, second = learn(solver, short), learn(solver, short, np.concatenate([ignored, label_blocks(), ignored]))
    assert all(one.tobytes() == other.tobytes() for one, other in zip(arrays(first), arrays(second), strict=True))


@pytest.mark.parametrize("solver", SOLVERS)
def test_ignored_pixels_are_zeros(solver: str) -> None:
    """Not a class, not a value to be guessed: the code of a block is the sum over its valid pixels."""
    block = np.zeros((1, R * R), np.uint8)
    block[0, 5:9] = IGNORE_INDEX
    (first, *rest) = learned(solver).encoder
    values = one_hot(block) @ first.weight_OI.T + first.bias_O
    for layer in rest:
        values = np.maximum(values, 0) @ layer.weight_OI.T + layer.bias_O
    np.testing.assert_allclose(encode_blocks(learned(solver).encoder, block, C), values)


def test_few_blocks_and_as_many_components_as_entries_are_no_trouble() -> None:
    blocks = np.repeat(np.arange(2, dtype=np.uint8)[:, None], 4, axis=1)
    for solver in SOLVERS:
        done: list[int] = []
        code = learn_code(
            solver,
            blocks,
            block_side=2,
            num_classes=2,
            num_components=8,
            config=LearnConfig(steps=150, hidden_channels=16),
            progress=done.append,
        )
        assert code.captured_energy > 0.95
        assert sum(done) == 150


def test_impossible_requests_are_refused() -> None:
    def attempt(solver: str = "sgd", blocks: Any = None, components: int = P, side: int = R) -> LearnedCode:
        blocks = label_blocks() if blocks is None else blocks
        return learn_code(solver, blocks, block_side=side, num_classes=C, num_components=components)

    with pytest.raises(ValueError, match="unknown solver 'adam'; known: sgd, orthogonal_sgd, autoencoder"):
        attempt("adam")
    with pytest.raises(ValueError, match=r"shape \(\d+, 64\); expected \(blocks, 16\) for blocks of side 4"):
        attempt(side=4)
    for components in (0, D + 1):
        with pytest.raises(ValueError, match=f"num_components is {components}; .* choose 1 to {D}"):
            attempt(components=components)
    with pytest.raises(ValueError, match="hold no valid pixel"):
        attempt(blocks=np.full((3, R * R), IGNORE_INDEX, np.uint8))
    with pytest.raises(ValueError, match="label value 9 is outside 0..3"):
        attempt(blocks=np.full((3, R * R), 9, np.uint8))
    with pytest.raises(ValueError, match="labels of type int64"):
        attempt(blocks=label_blocks().astype(np.int64))
    with pytest.raises(ValueError, match="by 'sgd' captures .* of the energy, .* choose a lower learning_rate"):
        learn("sgd", LearnConfig(steps=50, learning_rate=1e6))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", 0, "steps is 0, expected at least 1"),
        ("batch_size", 0, "batch_size is 0"),
        ("hidden_channels", 0, "hidden_channels is 0"),
        ("learning_rate", 0.0, "learning_rate is 0.0, expected above 0"),
        ("momentum", 1.0, "momentum is 1.0, expected 0 up to but not 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LearnConfig(**{name: value})
