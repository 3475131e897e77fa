"""Exponentials of many numbers at once, for compiled kernels: numba has no vectorised ones."""

import math

import numpy as np
from numpy.typing import NDArray

from segcore.compiled import kernel

TILE = 256
"""Numbers of one call."""

LOWEST = np.float32(-87)
"""Of their arguments: exp of it is a normal number, hardly larger than the smallest."""

_LOG2_E = np.float32(math.log2(math.e))
_HALF = np.float32(0.5)
_ONE = np.float32(1)
_EXPONENT_BIAS = np.int32(127)
_MANTISSA_BITS = np.int32(23)

# 2^x = 1 + x (P5 + x (P4 + ...)) for |x| <= 1/2 to 2e-7: Cephes (Moshier 1992), exp2f.c.
_P5 = np.float32(6.931472028550421e-1)
_P4 = np.float32(2.402264791363012e-1)
_P3 = np.float32(5.550332471162809e-2)
_P2 = np.float32(9.618437357674640e-3)
_P1 = np.float32(1.339887440266574e-3)
_P0 = np.float32(1.535336188319500e-4)


@kernel
def exponentials(x_m: NDArray[np.float32], exp_m: NDArray[np.float32], power_m: NDArray[np.int32]) -> None:
    """exp(x) of x in [-87, 0], to 2e-7 near 0: 2^k as a float's bits, times 2^rest as a polynomial."""
    for m in range(TILE):
        binary = x_m[m] * _LOG2_E
        k = np.int32(binary - _HALF)  # rounds to the nearest, since conversion cuts towards zero
        rest = binary - np.float32(k)
        power_m[m] = (k + _EXPONENT_BIAS) << _MANTISSA_BITS
        exp_m[m] = _ONE + rest * (_P5 + rest * (_P4 + rest * (_P3 + rest * (_P2 + rest * (_P1 + rest * _P0)))))
    powers_m = power_m.view(np.float32)
    for m in range(TILE):
        exp_m[m] *= powers_m[m]
