"""Shapes as people read them."""

from __future__ import annotations

import pytest

from na_deploy.model_file.tensors import format_shape


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((1, 3, 224, 224), "1×3×224×224"),
        (("batch", 64, "(height - 1)//4 + 1", "width//4"), "batch×64×((height - 1)//4 + 1)×(width//4)"),
        (("image.0", "s77"), "image.0×s77"),
        ((), "scalar"),
    ],
)
def test_arithmetic_over_free_sizes_stands_in_parentheses(shape: tuple[int | str, ...], text: str):
    assert format_shape(shape) == text
