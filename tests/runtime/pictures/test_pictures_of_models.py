"""Pictures of models are complete and say what they show in the units people use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from na_deploy.model_file.inspection import group_layers, inspect_model
from na_deploy.runtime.pictures.model import SHARES, _figure, plot_model
from na_deploy.runtime.pictures.numbers import count_text
from na_deploy.runtime.pictures.panels import CORNER, INTERIOR, KEYS, TILE, _ranges


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (7, "7"), (2_150_000, "2.15 M"), (4_310_000_000, "4.31 G"), (999_600, "1 M")]
)
def test_counts_have_the_prefix_that_suits_them(count: float, text: str):
    assert count_text(count) == text


def test_slices_are_counted_from_one():
    assert _ranges(np.array([0, 1, 2])) == "1–3"
    assert _ranges(np.array([0, 3, 6])) == "1, 4, 7"
    assert _ranges(np.array([4])) == "5"


def test_layers_have_colours_that_the_legend_does_not_use():
    assert not set(SHARES) & {INTERIOR, CORNER, TILE, KEYS}
    assert len(set(SHARES)) == len(SHARES)


@pytest.mark.parametrize("dilations", [(1,), (1, 2), (1, 2, 4, 8)])
def test_nothing_of_the_heading_lies_outside_the_picture(write_model, dilations: tuple[int, ...]):
    summary = inspect_model(write_model(size=128, dilations=dilations))
    figure = _figure(group_layers(summary.layers), summary, "A title")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    frame = figure.bbox
    for text in [*figure.texts, *figure.legends]:
        box = text.get_window_extent(renderer)
        assert box.x0 >= frame.x0, text
        assert box.x1 <= frame.x1, text
        assert box.y1 <= frame.y1, text
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 4


def test_a_picture_of_every_format_is_written(write_model, tmp_path: Path):
    summary = inspect_model(write_model())
    for ending, magic in ((".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")):
        plot_model(summary, tmp_path / f"picture{ending}", "title")
        assert (tmp_path / f"picture{ending}").read_bytes().startswith(magic)
