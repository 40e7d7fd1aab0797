"""Eight float32 at once in compiled functions (preprocess/tvl1/machine_code.py).

`lanes` are a vector of eight in the compiled code, whatever the machine: a processor with shorter registers takes two.
Every operation is IEEE's own, one by one, nothing contracted or reordered: the same bytes come on every processor.
Arrays are one-dimensional and float32; nothing checks an index.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

COUNT = 8
Lanes = Any  # to type checkers; inside compiled functions a vector


class LanesType(types.Type):  # type: ignore[misc]
    """Numba's type of them."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


LANES = LanesType()
VECTOR = ir.VectorType(ir.FloatType(), COUNT)


@register_model(LanesType)
class LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, VECTOR)


def _pointer(context: Any, builder: Any, signature: Any, array: Any, index: Any) -> Any:
    data = context.make_array(signature.args[0])(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), VECTOR.as_pointer())


@intrinsic  # type: ignore[untyped-decorator]
def load(typing: Any, array: Any, index: Any) -> Any:
    """Eight neighbours of an array, from `index` on."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_pointer(context, builder, signature, *args), align=4)

    return LANES(array, types.intp), code


@intrinsic  # type: ignore[untyped-decorator]
def store(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Eight lanes into an array, from `index` on."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _pointer(context, builder, signature, *args[:2]), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, LANES), code


@intrinsic  # type: ignore[untyped-decorator]
def value(typing: Any, array: Any, index: Any) -> Any:
    """One number of an array."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load(builder.gep(data, [args[1]]))

    return types.float32(array, types.intp), code


@intrinsic  # type: ignore[untyped-decorator]
def put(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """One number into an array."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        builder.store(args[2], builder.gep(data, [args[1]]))
        return context.get_dummy_value()

    return types.void(array, types.intp, types.float32), code


@intrinsic  # type: ignore[untyped-decorator]
def every(typing: Any, value: Any) -> Any:
    """One number in every lane."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        first = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), args[0], ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), COUNT), [0] * COUNT)
        return builder.shuffle_vector(first, first, zeros)

    return LANES(types.float32), code


@intrinsic  # type: ignore[untyped-decorator]
def halves(typing: Any, low: Any, high: Any) -> Any:
    """One number in the lower four lanes, another in the upper four."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pair = ir.Constant(ir.VectorType(ir.FloatType(), 2), ir.Undefined)
        for i, value in enumerate(args):
            pair = builder.insert_element(pair, value, ir.IntType(32)(i))
        order = ir.Constant(ir.VectorType(ir.IntType(32), COUNT), [0] * 4 + [1] * 4)
        return builder.shuffle_vector(pair, pair, order)

    return LANES(types.float32, types.float32), code


@intrinsic  # type: ignore[untyped-decorator]
def halves_added(typing: Any, value: Any) -> Any:
    """The lower four lanes plus the upper four, as a tuple."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        low, high = (
            builder.shuffle_vector(
                args[0], args[0], ir.Constant(ir.VectorType(ir.IntType(32), 4), list(range(first, first + 4)))
            )
            for first in (0, 4)
        )
        both = builder.fadd(low, high)
        return cgutils.pack_array(builder, [builder.extract_element(both, ir.IntType(32)(i)) for i in range(4)])

    return types.UniTuple(types.float32, 4)(LANES), code


@intrinsic  # type: ignore[untyped-decorator]
def total(typing: Any, value: Any) -> Any:
    """The sum of the lanes, the first first, in float64."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        parts = [
            builder.fpext(builder.extract_element(args[0], ir.IntType(32)(i)), ir.DoubleType()) for i in range(COUNT)
        ]
        added = parts[0]
        for part in parts[1:]:
            added = builder.fadd(added, part)
        return added

    return types.float64(LANES), code


def _unary(name: str) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def operation(typing: Any, value: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = ir.FunctionType(VECTOR, [VECTOR])
            function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{COUNT}f32")
            return builder.call(function, args)

        return LANES(LANES), code

    return operation


def _chosen(comparison: str) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def operation(typing: Any, one: Any, other: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.select(builder.fcmp_ordered(comparison, *args), *args)

        return LANES(LANES, LANES), code

    return operation


root, down = _unary("sqrt"), _unary("floor")
least, most = _chosen("<"), _chosen(">")  # the second where they are equal


def _infix(sign: Any, name: str) -> None:
    @type_callable(sign)  # type: ignore[untyped-decorator]
    def typed(context: Any) -> Any:
        def of(one: Any, other: Any) -> Any:
            return LANES if isinstance(one, LanesType) and isinstance(other, LanesType) else None

        return of

    @lower_builtin(sign, LANES, LANES)  # type: ignore[untyped-decorator]
    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return getattr(builder, name)(*args)


for _sign, _name in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _infix(_sign, _name)
