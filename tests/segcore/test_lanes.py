"""Registers in compiled code against NumPy; and that they are vectors in the compiled code."""

import numba
import numpy as np
import pytest
from numba.core.errors import TypingError
from numpy.typing import NDArray

from segcore.lanes import LANES, broadcast, larger, largest, load, plus, plus_scaled, store, total

Floats = NDArray[np.float32]


@numba.njit
def all_of_them(a: Floats, b: Floats, out: Floats) -> tuple[float, float]:
    for k in range(0, len(a), LANES):
        x, y = load(a, k), load(b, k)
        store(out, k, larger(plus(x, y), plus_scaled(broadcast(np.float32(1)), x, np.float32(3))))
    return largest(load(a, 1)), total(load(a, 1))


def test_registers_do_what_they_say_at_any_place_of_an_array() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=3 * LANES).astype(np.float32) for _ in range(2))
    out = np.zeros_like(a)
    highest, summed = all_of_them(a, b, out)
    np.testing.assert_allclose(out, np.maximum(a + b, 1 + 3 * a), rtol=1e-6)
    assert highest == a[1 : 1 + LANES].max()
    assert summed == pytest.approx(a[1 : 1 + LANES].sum(dtype=np.float64), rel=1e-6)


def test_they_are_vector_instructions() -> None:
    all_of_them(*(np.zeros(LANES, np.float32) for _ in range(3)))
    (code,) = all_of_them.inspect_llvm().values()
    assert f"load <{LANES} x float>" in code and f"store <{LANES} x float>" in code


@pytest.mark.parametrize("array", [np.zeros(LANES), np.zeros((2, LANES), np.float32), np.zeros(16, np.float32)[::2]])
def test_other_arrays_are_refused(array: NDArray[np.generic]) -> None:
    with pytest.raises(TypingError, match="expected a one-dimensional float32 array without gaps"):
        all_of_them(array, array, array)
