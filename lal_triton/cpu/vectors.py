"""Vectors of columns as values of compiled functions: arithmetic, comparisons and loads that LLVM need not discover.

A vector fills a cache line: 16 float32 or 8 float64, or as many integers. Scalars beside vectors are converted to their
type. A comparison gives a mask for `where`.
"""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils, config
from numba.core.datamodel import models
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, register_model

BYTES = 64
CONTRACT = ("contract",)


class Vector(types.Type):
    def __init__(self, dtype: Any, lanes: int) -> None:
        self.dtype, self.lanes = dtype, lanes
        super().__init__(f"Vector({dtype}, {lanes})")

    def of(self, dtype: Any) -> "Vector":
        return Vector(dtype, self.lanes)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, _in_llvm(kind))


def _in_llvm(kind: Vector) -> ir.Type:
    element = {types.float32: ir.FloatType(), types.float64: ir.DoubleType(), types.boolean: ir.IntType(1)}
    return ir.VectorType(element.get(kind.dtype) or ir.IntType(kind.dtype.bitwidth), kind.lanes)


def lanes_of(dtype: Any) -> int:
    return BYTES * 8 // dtype.bitwidth


def _spread(context: Any, builder: Any, value: Any, kind: types.Type, vector: Vector) -> Any:
    """A scalar in every lane; a vector as it is."""
    if isinstance(kind, Vector):
        return value
    scalar = context.cast(builder, value, kind, vector.dtype)
    undefined = ir.Constant(_in_llvm(vector), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.lanes), [0] * vector.lanes)
    return builder.shuffle_vector(first, undefined, zeros)


def _vector_among(arguments: tuple[types.Type, ...]) -> Any:
    return next((kind for kind in arguments if isinstance(kind, Vector)), None)


def _operator(function: Any, emit: Callable[..., Any], compares: bool = False) -> None:
    """Makes an operator take vectors; `emit(builder, vector, a, b)` gives its instruction."""

    @infer_global(function)
    class Template(AbstractTemplate):
        def generic(self, args: tuple[types.Type, ...], kws: dict[str, types.Type]) -> Any:
            vector = _vector_among(args)
            if vector is None:
                return None
            return signature(vector.of(types.boolean) if compares else vector, *args)

    def lower(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        vector = _vector_among(sig.args)
        pair = (_spread(context, builder, value, kind, vector) for value, kind in zip(arguments, sig.args, strict=True))
        return emit(builder, vector, *pair)

    for left, right in ((Vector, Vector), (Vector, types.Number), (types.Number, Vector)):
        lower_builtin(function, left, right)(lower)


def _arithmetic(name: str) -> Callable[..., Any]:
    def emit(builder: Any, vector: Vector, a: Any, b: Any) -> Any:
        if isinstance(vector.dtype, types.Float):
            return getattr(builder, f"f{name}")(a, b, flags=CONTRACT)
        return getattr(builder, name)(a, b)

    return emit


def _comparison(symbol: str) -> Callable[..., Any]:
    def emit(builder: Any, vector: Vector, a: Any, b: Any) -> Any:
        if not isinstance(vector.dtype, types.Float):
            return builder.icmp_signed(symbol, a, b)
        return builder.fcmp_unordered(symbol, a, b) if symbol == "!=" else builder.fcmp_ordered(symbol, a, b)

    return emit


for _name, _functions in {
    "add": (operator.add, operator.iadd),
    "sub": (operator.sub, operator.isub),
    "mul": (operator.mul, operator.imul),
    "div": (operator.truediv, operator.itruediv),
}.items():
    for _function in _functions:
        _operator(_function, _arithmetic(_name))
for _function, _symbol in (
    (operator.lt, "<"),
    (operator.gt, ">"),
    (operator.ge, ">="),
    (operator.eq, "=="),
    (operator.ne, "!="),
):
    _operator(_function, _comparison(_symbol), compares=True)
_operator(operator.and_, lambda builder, vector, a, b: builder.and_(a, b))
_operator(operator.or_, lambda builder, vector, a, b: builder.or_(a, b))
_operator(operator.lshift, lambda builder, vector, a, b: builder.shl(a, b))


def _pointer(context: Any, builder: Any, array: Any, kind: types.Array, index: Any, of: Any, vector: Vector) -> Any:
    """Of `array[index]`, one integer for each dimension of a contiguous array or one for its memory, none negative."""
    data = context.make_array(kind)(context, builder, array)
    several = isinstance(of, types.BaseTuple)
    places, numbers = (cgutils.unpack_tuple(builder, index), list(of)) if several else ([index], [of])
    first, *rest = map(partial(context.cast, builder, toty=types.intp), places, numbers)
    sizes = cgutils.unpack_tuple(builder, data.shape)[1:] if several else []
    for size, at in zip(sizes, rest, strict=True):
        first = builder.add(builder.mul(first, size, flags=("nsw",)), at, flags=("nsw",))
    return builder.bitcast(builder.gep(data.data, [first]), _in_llvm(vector).as_pointer())


@intrinsic
def lanes(context: Any, array: Any) -> Any:
    """How many elements of the array are a vector."""
    count = lanes_of(array.dtype)
    return types.intp(array), lambda context, builder, sig, arguments: context.get_constant(types.intp, count)


@intrinsic
def load(context: Any, array: Any, index: Any, like: Any) -> Any:
    """As many elements as `like` has lanes, from `array[index]` on.

    index: one integer for each dimension, or one for the array's memory.
    """
    vector = Vector(array.dtype, lanes_of(like.dtype))

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, arguments[0], array, arguments[1], index, vector)
        return builder.load(pointer, align=array.dtype.bitwidth // 8)

    return vector(array, index, like), generate


@intrinsic
def slide(context: Any, before: Any, array: Any, last: Any) -> Any:
    """The elements up to `array[last]`, an index of the memory, by the vector `before` that ends one element earlier.

    AVX-512 shifts the new element in: a load of a whole cache line that crosses two of them takes several cycles.
    """
    shift = ir.Constant(ir.VectorType(ir.IntType(32), before.lanes), list(range(1, before.lanes + 1)))
    integers = ir.VectorType(ir.IntType(before.dtype.bitwidth), before.lanes)  # valign is of integers

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        data = context.make_array(array)(context, builder, arguments[1]).data
        end = builder.gep(data, [context.cast(builder, arguments[2], last, types.intp)])
        if not _has_avx512():
            pointer = builder.gep(end, [context.get_constant(types.intp, 1 - before.lanes)])
            pointer = builder.bitcast(pointer, _in_llvm(before).as_pointer())
            return builder.load(pointer, align=before.dtype.bitwidth // 8)
        element = _spread(context, builder, builder.load(end), array.dtype, before)
        pair = (builder.bitcast(value, integers) for value in (arguments[0], element))
        return builder.bitcast(builder.shuffle_vector(*pair, shift), _in_llvm(before))

    return before(before, array, last), generate


def _has_avx512() -> bool:
    """Of the processor that numba compiles for."""
    return "+avx512f" in (vars(config)["CPU_FEATURES"] or binding.get_host_cpu_features().flatten())


@intrinsic
def store(context: Any, array: Any, index: Any, value: Any) -> Any:
    """A vector, to `array[index]` and what follows it; `index` as `load` takes it."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, arguments[0], array, arguments[1], index, value)
        builder.store(arguments[2], pointer, align=array.dtype.bitwidth // 8)

    return types.void(array, index, value), generate


@intrinsic
def prefetch(context: Any, row: Any, index: Any) -> Any:
    """Begins to bring `row[index]` into the caches; an index may lie outside."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        data = context.make_array(row)(context, builder, arguments[0]).data
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        address = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
        builder.call(function, [address, *(ir.Constant(flag, value) for value in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(row, types.intp), generate


@intrinsic
def broadcast(context: Any, scalar: Any, like: Any) -> Any:
    """A scalar in every lane of a vector of the array's type."""
    vector = Vector(like.dtype, lanes_of(like.dtype))

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return _spread(context, builder, arguments[0], scalar, vector)

    return vector(scalar, like), generate


@intrinsic
def where(context: Any, mask: Any, a: Any, b: Any) -> Any:
    """a in the lanes where the mask is set, b in the others."""
    vector = _vector_among((a, b))

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        values = zip(arguments[1:], (a, b), strict=True)
        return builder.select(arguments[0], *(_spread(context, builder, value, kind, vector) for value, kind in values))

    return vector(mask, a, b), generate


@intrinsic
def every(context: Any, mask: Any) -> Any:
    """Whether the mask is set in all lanes."""
    bits = ir.IntType(mask.lanes)

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return builder.icmp_unsigned("==", builder.bitcast(arguments[0], bits), ir.Constant(bits, -1))

    return types.boolean(mask), generate


@intrinsic
def sqrt(context: Any, x: Any) -> Any:
    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        kind = _in_llvm(x)
        name = f"llvm.sqrt.v{x.lanes}f{x.dtype.bitwidth}"
        return builder.call(
            cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind]), name), arguments
        )

    return x(x), generate


@intrinsic
def bits_of(context: Any, x: Any) -> Any:
    """The bits of floats, scalar or vector, as integers."""
    return _reinterpreted(x, {types.float32: types.int32, types.float64: types.int64})


@intrinsic
def float_of(context: Any, bits: Any) -> Any:
    """The floats of integers' bits."""
    return _reinterpreted(bits, {types.int32: types.float32, types.int64: types.float64})


def _reinterpreted(x: Any, kinds: dict[Any, Any]) -> Any:
    other = x.of(kinds[x.dtype]) if isinstance(x, Vector) else kinds[x]

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(other))

    return other(x), generate
