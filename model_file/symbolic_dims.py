"""The value of a symbolic dimension, such as ``(height - 1)//4 + 1``, once the sizes in it are known.

torch.onnx writes the dimensions of dynamic models as arithmetic over the names of the inputs' axes. This
computes them; it runs nothing else that a file may hold.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: Fraction,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Max": max,
    "max": max,
    "Min": min,
    "min": min,
    "floor": math.floor,
    "ceiling": math.ceil,
    "FloorDiv": operator.floordiv,
    "CleanDiv": operator.floordiv,
    "CeilDiv": lambda a, b: -(-a // b),
    "Mod": operator.mod,
    "PythonMod": operator.mod,
}
LONGEST = 4000
"""Most characters of an expression that is evaluated; a real one has a few dozen."""


def dimension_value(expression: str, sizes: Mapping[str, int]) -> int | None:
    """Return the value of a dimension, or ``None`` if it holds an unknown name or is not integer arithmetic.

    Args:
        expression: the dimension as the file writes it.
        sizes: values of the names in it.
    """
    if expression in sizes:
        return sizes[expression]
    if len(expression) > LONGEST:
        return None
    try:
        value = Fraction(_value(ast.parse(expression.strip(), mode="eval").body, sizes))
    except (SyntaxError, ValueError, TypeError, KeyError, ZeroDivisionError, OverflowError, RecursionError):
        return None
    return int(value) if value.denominator == 1 and value >= 0 else None


def _value(node: ast.expr, sizes: Mapping[str, int]) -> Any:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.Name(id=name):
            return sizes[name]
        case ast.UnaryOp(op=op, operand=operand):
            return _OPERATORS[type(op)](_value(operand, sizes))
        case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=1 | 2 | 3 as exponent)):
            return _value(left, sizes) ** exponent
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_value(left, sizes), _value(right, sizes))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            return _FUNCTIONS[name](*(_value(argument, sizes) for argument in arguments))
    raise ValueError("not integer arithmetic")
