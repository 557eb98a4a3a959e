"""SIMD vectors as Numba values: LLVM vector operations for loops that LLVM does not auto-vectorise.

A vector has a NumPy element type and a number of lanes. `+ - * / & | ^ << >>` and comparisons work
lane by lane, on two vectors or a vector and a scalar of its element type. LLVM splits vectors wider
than the CPU's registers, so the code runs on any CPU. Loads and stores check no bounds.
"""

import functools
import itertools
import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model


class VectorType(types.Type):
    """The Numba type of `lanes` values of `element`, a Numba number type or boolean."""

    def __init__(self, element: types.Type, lanes: int) -> None:
        self.element, self.lanes = element, lanes
        super().__init__(name=f"vector({element} x {lanes})")

    @property
    def llvm(self) -> ir.VectorType:
        """The LLVM type of the vector."""
        return ir.VectorType(_llvm_element(self.element), self.lanes)


@register_model(VectorType)
class VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    """Data model: a vector is one LLVM vector value."""

    def __init__(self, manager: Any, vector: VectorType) -> None:
        super().__init__(manager, vector, vector.llvm)


def _llvm_element(element: types.Type) -> ir.Type:
    """The LLVM type of one lane."""
    if isinstance(element, types.Boolean):
        return ir.IntType(1)
    if isinstance(element, types.Float):
        return {16: ir.HalfType(), 32: ir.FloatType(), 64: ir.DoubleType()}[element.bitwidth]
    return ir.IntType(element.bitwidth)


def _splat(builder: Any, scalar: Any, lanes: int) -> Any:
    """Emit a vector with `scalar` in all lanes."""
    single = builder.insert_element(
        ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined),
        scalar,
        ir.Constant(ir.IntType(32), 0),
    )
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
    return builder.shuffle_vector(single, single, zeros)


def vector_pointer(
    context: Any, builder: Any, array_type: types.Array, array: Any, index: Any, vector: VectorType
) -> Any:
    """Emit the address of `array[index]` as a pointer to `vector`. Only 1-D C-contiguous arrays."""
    if array_type.layout != "C" or array_type.ndim != 1:
        raise TypingError(f"vector loads and stores need a contiguous 1-D array, got {array_type}.")
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.llvm.as_pointer())


def call_intrinsic(builder: Any, name: str, result: ir.Type, arguments: Any) -> Any:
    """Emit a call of LLVM's intrinsic `name`, which returns `result`."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


@intrinsic(prefer_literal=True)
def load(typing_context, array, index, lanes):
    """Load `array[index : index + lanes]`, `lanes` a literal, at any alignment."""
    vector = VectorType(array.dtype, lanes.literal_value)

    def generate(context, builder, signature, arguments):
        pointer = vector_pointer(context, builder, array, arguments[0], arguments[1], vector)
        return builder.load(pointer, align=array.dtype.bitwidth // 8)

    return vector(array, types.intp, lanes), generate


@intrinsic(prefer_literal=True)
def store(typing_context, array, index, vector):
    """Store all lanes to `array[index : index + lanes]`, at any alignment."""

    def generate(context, builder, signature, arguments):
        pointer = vector_pointer(context, builder, array, arguments[0], arguments[1], vector)
        builder.store(arguments[2], pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


@intrinsic(prefer_literal=True)
def prefetch(typing_context, array, index):
    """Prefetch the cache line at `array[index]`. An index outside the array is harmless."""

    def generate(context, builder, signature, arguments):
        byte = VectorType(types.uint8, 1)
        pointer = builder.bitcast(
            vector_pointer(context, builder, array, arguments[0], arguments[1], byte),
            ir.IntType(8).as_pointer(),
        )
        flag = ir.IntType(32)
        # Flags: for reading, into all cache levels, data.
        parts = [pointer, flag(0), flag(3), flag(1)]
        call_intrinsic(builder, "llvm.prefetch.p0", ir.VoidType(), parts)
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic(prefer_literal=True)
def broadcast(typing_context, scalar, lanes):
    """A vector with `scalar` in each of `lanes` lanes, `lanes` a literal."""
    vector = VectorType(scalar, lanes.literal_value)

    def generate(context, builder, signature, arguments):
        return _splat(builder, arguments[0], vector.lanes)

    return vector(scalar, lanes), generate


@intrinsic(prefer_literal=True)
def broadcast_like(typing_context, vector, scalar):
    """A vector of the type of `vector` with `scalar` in each lane."""

    def generate(context, builder, signature, arguments):
        return _splat(builder, arguments[1], vector.lanes)

    return vector(vector, vector.element), generate


@intrinsic(prefer_literal=True)
def convert(typing_context, vector, dtype):
    """Convert lanes to `dtype`, a NumPy type. Integers wrap; floats are truncated and must fit."""
    source, result = vector.element, VectorType(dtype.dtype, vector.lanes)
    target = result.element

    def generate(context, builder, signature, arguments):
        value, result_type = arguments[0], result.llvm
        if isinstance(source, types.Float) and isinstance(target, types.Float):
            return (builder.fptrunc if target.bitwidth < source.bitwidth else builder.fpext)(
                value, result_type
            )
        if isinstance(source, types.Float):
            return (builder.fptosi if target.signed else builder.fptoui)(value, result_type)
        if isinstance(target, types.Float):
            return (builder.sitofp if source.signed else builder.uitofp)(value, result_type)
        if target.bitwidth == source.bitwidth:
            return value
        if target.bitwidth < source.bitwidth:
            return builder.trunc(value, result_type)
        return (builder.sext if source.signed else builder.zext)(value, result_type)

    return result(vector, dtype), generate


@intrinsic(prefer_literal=True)
def reinterpret(typing_context, vector, dtype):
    """Reinterpret the vector's bits as lanes of `dtype`, in little-endian order."""
    result = VectorType(dtype.dtype, vector.lanes * vector.element.bitwidth // dtype.dtype.bitwidth)

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], result.llvm)

    return result(vector, dtype), generate


@intrinsic(prefer_literal=True)
def multiply_high(typing_context, a, b):
    """The high 16 bits of the products of 16-bit lanes."""

    def generate(context, builder, signature, arguments):
        wide = ir.VectorType(ir.IntType(32), a.lanes)
        extend = builder.sext if a.element.signed else builder.zext
        product = builder.mul(*[extend(argument, wide) for argument in arguments])
        shift = ir.Constant(wide, [16] * a.lanes)
        return builder.trunc(builder.lshr(product, shift), a.llvm)

    return a(a, b), generate


@intrinsic(prefer_literal=True)
def multiply_add(typing_context, a, b, c):
    """a · b + c of float lanes, rounded once on CPUs with fused multiply-add, else twice."""

    def generate(context, builder, signature, arguments):
        first, second, third = arguments
        product = builder.fmul(first, second, flags=("contract",))
        return builder.fadd(product, third, flags=("contract",))

    return a(a, b, c), generate


@intrinsic(prefer_literal=True)
def minimum(typing_context, a, b):
    """The smaller of two vectors, lane by lane."""

    def generate(context, builder, signature, arguments):
        less = _comparison("<")(builder, a.element, arguments)
        return builder.select(less, *arguments)

    return a(a, b), generate


@intrinsic(prefer_literal=True)
def maximum(typing_context, a, b):
    """The larger of two vectors, lane by lane."""

    def generate(context, builder, signature, arguments):
        less = _comparison("<")(builder, a.element, arguments)
        return builder.select(less, *reversed(arguments))

    return a(a, b), generate


def _float_function(name: str, docstring: str) -> Any:
    """Make an intrinsic that applies LLVM's intrinsic `name` to the lanes of a float vector."""

    def apply(typing_context, vector):
        def generate(context, builder, signature, arguments):
            symbol = f"llvm.{name}.v{vector.lanes}f{vector.element.bitwidth}"
            return call_intrinsic(builder, symbol, vector.llvm, arguments)

        return vector(vector), generate

    apply.__doc__ = docstring
    return intrinsic(prefer_literal=True)(apply)


magnitude = _float_function("fabs", "The absolute values of float lanes.")
truncate = _float_function("trunc", "Float lanes rounded toward zero.")


@intrinsic(prefer_literal=True)
def select(typing_context, condition, a, b):
    """`a` in the lanes where `condition` holds, `b` elsewhere."""

    def generate(context, builder, signature, arguments):
        return builder.select(*arguments)

    return a(condition, a, b), generate


@intrinsic(prefer_literal=True)
def any_lane(typing_context, condition):
    """Whether `condition` holds in any lane."""

    def generate(context, builder, signature, arguments):
        bits = ir.IntType(condition.lanes)
        return builder.icmp_unsigned(
            "!=", builder.bitcast(arguments[0], bits), ir.Constant(bits, 0)
        )

    return types.boolean(condition), generate


@intrinsic(prefer_literal=True)
def first_lane(typing_context, condition):
    """Index of the first lane where `condition` holds, or the number of lanes where none does."""

    def generate(context, builder, signature, arguments):
        bits = builder.bitcast(arguments[0], ir.IntType(condition.lanes))
        return builder.zext(builder.cttz(bits, ir.Constant(ir.IntType(1), 0)), ir.IntType(64))

    return types.int64(condition), generate


@intrinsic(prefer_literal=True)
def total(typing_context, vector):
    """The sum of all lanes of an integer vector."""

    def generate(context, builder, signature, arguments):
        lanes = [
            builder.extract_element(arguments[0], ir.Constant(ir.IntType(32), i))
            for i in range(vector.lanes)
        ]
        return functools.reduce(builder.add, lanes)

    return vector.element(vector), generate


@intrinsic(prefer_literal=True)
def lane_numbers(typing_context, dtype, lanes):
    """A vector 0, 1, …, lanes - 1 of `dtype`, `lanes` a literal."""
    vector = VectorType(dtype.dtype, lanes.literal_value)

    def generate(context, builder, signature, arguments):
        return ir.Constant(vector.llvm, list(range(vector.lanes)))

    return vector(dtype, lanes), generate


@intrinsic(prefer_literal=True)
def with_first(typing_context, vector, value):
    """An integer vector with `value`, int64, wrapped, in lane 0."""

    def generate(context, builder, signature, arguments):
        element = builder.trunc(arguments[1], vector.llvm.element)
        return builder.insert_element(arguments[0], element, ir.Constant(ir.IntType(32), 0))

    return vector(vector, types.int64), generate


def _overload_operator(function: Any, emit: Any, *, boolean: bool = False) -> None:
    """Overload `function`, of the module `operator`, for vectors and for a vector and a scalar.

    `emit(builder, element, arguments)` emits the operation on two vectors of `element` lanes;
    `boolean`: its result has boolean lanes. Emitted in place: an `overload` in Python would be
    compiled as a function of its own for each type, two seconds in all.
    """

    @infer_global(function)
    class Operator(AbstractTemplate):  # type: ignore[misc]
        """The operator's types: scalars are converted to the vector's element type."""

        def generic(self, args, kws):
            vectors = [argument for argument in args if isinstance(argument, VectorType)]
            if kws or len(args) != 2 or not vectors or vectors[0] != vectors[-1]:
                return None
            vector = vectors[0]
            operands = [
                argument if isinstance(argument, VectorType) else vector.element
                for argument in args
            ]
            return signature(
                VectorType(types.boolean, vector.lanes) if boolean else vector, *operands
            )

    def generate(context, builder, signature, arguments):
        vector = next(kind for kind in signature.args if isinstance(kind, VectorType))
        vectors = [
            value if isinstance(kind, VectorType) else _splat(builder, value, vector.lanes)
            for kind, value in zip(signature.args, arguments)
        ]
        return emit(builder, vector.element, vectors)

    for operands in itertools.product((VectorType, types.Any), repeat=2):
        if VectorType in operands:
            lower_builtin(function, *operands)(generate)


def _binary(unsigned: str, floating: str, signed: str | None = None) -> Any:
    """Make the `emit` of an operation. The arguments name the LLVM instruction for each kind of
    lane; `signed` defaults to `unsigned`."""

    def emit(builder: Any, element: types.Type, vectors: Any) -> Any:
        integer = signed or unsigned if getattr(element, "signed", False) else unsigned
        name = floating if isinstance(element, types.Float) else integer
        return getattr(builder, name)(*vectors)

    return emit


def _comparison(symbol: str) -> Any:
    """Make the `emit` of a comparison."""

    def emit(builder: Any, element: types.Type, vectors: Any) -> Any:
        if isinstance(element, types.Float):
            return builder.fcmp_ordered(symbol, *vectors)
        compare = builder.icmp_signed if element.signed else builder.icmp_unsigned
        return compare(symbol, *vectors)

    return emit


for _function, _names in {
    operator.add: ("add", "fadd"),
    operator.sub: ("sub", "fsub"),
    operator.mul: ("mul", "fmul"),
    operator.truediv: ("udiv", "fdiv"),
    operator.and_: ("and_", "and_"),
    operator.or_: ("or_", "or_"),
    operator.xor: ("xor", "xor"),
    operator.lshift: ("shl", "shl"),
    operator.rshift: ("lshr", "lshr", "ashr"),
}.items():
    _overload_operator(_function, _binary(*_names))
for _function, _symbol in {
    operator.lt: "<",
    operator.le: "<=",
    operator.gt: ">",
    operator.ge: ">=",
    operator.eq: "==",
    operator.ne: "!=",
}.items():
    _overload_operator(_function, _comparison(_symbol), boolean=True)
