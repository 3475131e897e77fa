"""Eight float32 at a time: vector registers for compiled kernels whose rows are short.

LLVM, as numba runs it, turns a loop over 8 or 24 numbers into scalar instructions: it unrolls such a loop before its
loop vectoriser sees it, and numba leaves the vectoriser of straight code out. The functions here are for compiled code
only; each becomes one or a few instructions of whatever vectors the machine has.

Arrays are one-dimensional, float32 and without gaps; a place in one is the index of the first of eight numbers, and is
not checked.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core.errors import TypingError
from numba.extending import intrinsic, models, register_model

LANES = 8
"""Numbers in a register."""

Lanes = Any
"""What the functions take and give: a register. Outside of compiled code there is none."""

_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_INDEX = ir.IntType(32)
_ANY = ir.Constant(_VECTOR, ir.Undefined)


class _LanesType(types.Type):  # type: ignore[misc]  # numba's classes are untyped
    """The type of a register, as numba knows it."""


_LANES = _LanesType(name="eight_float32")


@register_model(_LanesType)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)


def _pointer(context: Any, builder: Any, kind: Any, array: Any, start: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [start]), _VECTOR.as_pointer())


def _check(kind: Any) -> None:
    if not (isinstance(kind, types.Array) and (kind.dtype, kind.ndim, kind.layout) == (types.float32, 1, "C")):
        raise TypingError(f"the array is {kind}; expected a one-dimensional float32 array without gaps")


def _broadcast(builder: Any, value: Any) -> Any:
    first = builder.insert_element(_ANY, value, ir.Constant(_INDEX, 0))
    return builder.shuffle_vector(first, _ANY, ir.Constant(ir.VectorType(_INDEX, LANES), [0] * LANES))


def _fold(builder: Any, lanes: Any, combine: Any) -> Any:
    """Combine the two halves until one number is left."""
    for distance in (4, 2, 1):
        turned = ir.Constant(ir.VectorType(_INDEX, LANES), [(lane + distance) % LANES for lane in range(LANES)])
        lanes = combine(builder, lanes, builder.shuffle_vector(lanes, lanes, turned))
    return builder.extract_element(lanes, ir.Constant(_INDEX, 0))


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _sum(builder: Any, a: Any, b: Any) -> Any:
    return builder.fadd(a, b)


@intrinsic  # type: ignore[misc]
def load(typing_context: Any, array: Any, start: Any) -> Any:
    """Eight neighbours of an array."""
    _check(array)

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_pointer(context, builder, signature.args[0], *args), align=4)

    return _LANES(array, types.intp), build


@intrinsic  # type: ignore[misc]
def store(typing_context: Any, array: Any, start: Any, lanes: Any) -> Any:
    """Write eight neighbours of an array."""
    _check(array)

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, start, lanes = args
        builder.store(lanes, _pointer(context, builder, signature.args[0], array, start), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, _LANES), build


@intrinsic  # type: ignore[misc]
def broadcast(typing_context: Any, value: Any) -> Any:
    """One number in every lane."""
    return _LANES(types.float32), lambda context, builder, signature, args: _broadcast(builder, args[0])


@intrinsic  # type: ignore[misc]
def plus(typing_context: Any, a: Any, b: Any) -> Any:
    """a + b."""
    return _LANES(_LANES, _LANES), lambda context, builder, signature, args: _sum(builder, *args)


@intrinsic  # type: ignore[misc]
def plus_scaled(typing_context: Any, total: Any, lanes: Any, factor: Any) -> Any:
    """total + factor * lanes; rounded once where the machine can."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        total, lanes, factor = args
        product = builder.fmul(lanes, _broadcast(builder, factor), flags=("contract",))
        return builder.fadd(total, product, flags=("contract",))

    return _LANES(_LANES, _LANES, types.float32), build


@intrinsic  # type: ignore[misc]
def larger(typing_context: Any, a: Any, b: Any) -> Any:
    """The larger of a and b, lane by lane."""
    return _LANES(_LANES, _LANES), lambda context, builder, signature, args: _larger(builder, *args)


@intrinsic  # type: ignore[misc]
def largest(typing_context: Any, lanes: Any) -> Any:
    """The largest lane, one number."""
    return types.float32(_LANES), lambda context, builder, signature, args: _fold(builder, args[0], _larger)


@intrinsic  # type: ignore[misc]
def total(typing_context: Any, lanes: Any) -> Any:
    """The sum of the lanes, one number."""
    return types.float32(_LANES), lambda context, builder, signature, args: _fold(builder, args[0], _sum)
