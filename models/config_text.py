"""Configuration text that mmcv and mmengine store beside weights: Python assignments, read and never run.

Both write ``Config.pretty_text``: assignments of literals and ``dict(...)``, nothing else.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any


def read_assignments(text: str) -> dict[str, Any]:
    """Return the values assigned at the top level, by name; expressions that are no literals are ``None``.

    Text that is no Python gives nothing.
    """
    try:
        body = ast.parse(text).body
        return {
            target.id: _value(statement.value)
            for statement in body
            if isinstance(statement, ast.Assign)
            for target in statement.targets
            if isinstance(target, ast.Name)
        }
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return {}


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.List() | ast.Tuple() | ast.Set():
            return [_value(item) for item in node.elts]
        case ast.Dict():
            pairs = zip(node.keys, node.values, strict=True)
            return {key.value: _value(value) for key, value in pairs if isinstance(key, ast.Constant)}
        case ast.Call(func=ast.Name(id="dict"), args=[]):
            return {keyword.arg: _value(keyword.value) for keyword in node.keywords if keyword.arg}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case _:
            return None


def nested(content: Any, key: str) -> Iterator[Any]:
    """Yield every value under ``key``, at any depth, the outermost first."""
    if isinstance(content, Mapping):
        if key in content:
            yield content[key]
        for value in content.values():
            yield from nested(value, key)
    elif isinstance(content, list):
        for value in content:
            yield from nested(value, key)
