"""Symbolic dimensions are computed, and nothing else is."""

from __future__ import annotations

import pytest

from na_deploy.model_file.symbolic_dims import dimension_value

SIZES = {"batch": 2, "height": 225, "width": 97, "s0": 5}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("height", 225),
        ("2*batch", 4),
        ("(((height - 1)//4)) + Max(0, 6 - (((height - 1)//4))) + 1", 57),
        ("(((width - 1)//32)) + Max(0, 6 - (((width - 1)//32))) + 1", 7),
        ("floor(width/4) + 1", 25),
        ("ceiling(width/4)", 25),
        ("s0**2 - Mod(s0, 3)", 23),
        ("-batch + 5", 3),
        ("Min(height, width)*batch", 194),
    ],
)
def test_arithmetic_over_names_is_computed(expression: str, value: int):
    assert dimension_value(expression, SIZES) == value


@pytest.mark.parametrize(
    "expression",
    [
        "unknown + 1", "width/4", "batch - 5", "", "height +", "1 // 0", "9**9**9", "batch**-1",
        "__import__('os')",
        "batch.bit_length()", "Max()", "'text'", "1.5", "(" * 5000 + "1" + ")" * 5000,
    ],
)  # fmt: skip
def test_anything_else_is_unknown(expression: str):
    assert dimension_value(expression, SIZES) is None
