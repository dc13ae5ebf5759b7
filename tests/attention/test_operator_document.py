"""The examples in docs/operator.md agree with the code."""

from __future__ import annotations

import re
from pathlib import Path

from onnx import helper

from na_deploy.attention import attended_positions
from na_deploy.attention.schema import attribute_defaults

DOCUMENT = (Path(__file__).parents[2] / "docs" / "operator.md").read_text()
LENGTH = 12
DRAWN = [(5, 1, 1, False), (4, 1, 1, False), (3, 3, 1, False), (5, 1, 3, False), (5, 1, 1, True)]


def test_the_windows_are_drawn_as_they_are():
    row = re.compile(rf"\s+([Q#.]{{{LENGTH}}}\s*){{{len(DRAWN)}}}")
    rows = [line.split() for line in DOCUMENT.splitlines() if row.fullmatch(line)]
    assert len(rows) == LENGTH
    for position, drawings in enumerate(rows):
        for attributes, drawing in zip(DRAWN, drawings, strict=True):
            attended = set(attended_positions(position, LENGTH, *attributes).tolist())
            expected = ["#" if key in attended else "." for key in range(LENGTH)]
            expected[position] = "Q"
            assert drawing == "".join(expected), (attributes, position)


def test_attributes_are_listed_with_their_defaults():
    required, defaults = attribute_defaults()
    listed = dict(re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (?:INTS|INT|FLOAT|STRING)[^|]*\| ([^|]+) \|", DOCUMENT, re.M))
    found = {}
    for names, value in listed.items():
        values = value.split(", ")
        found.update(dict(zip(re.findall(r"\w+", names), values, strict=True)))
    expected = dict.fromkeys(required, "required")
    for default in defaults:
        value = helper.get_attribute_value(default)
        if isinstance(value, bytes):
            expected[default.name] = f'"{value.decode()}"'
        else:
            expected[default.name] = f"{value[0] if isinstance(value, list) else value:g}"
    assert found == expected
