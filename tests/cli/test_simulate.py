"""simulate from the command line, and the same counts for the layers of a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from na_deploy.attention.simulator import simulate
from na_deploy.attention.windows import NeighborhoodSpec
from na_deploy.cli.main import run


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_published_strides_are_recommended(capsys):
    # NATTEN's sample outputs: 256x256 with window 80x80, and one axis of 32,768 with window 2,048.
    square = call(
        capsys, "simulate", "--shape", "256x256", "--window", 80, "--tile-q", "16x8", "--tile-kv", "16x8", "--json"
    )
    assert json.loads(square[1])["recommended"]["stride"] == [16, 16]
    line = json.loads(call(capsys, "simulate", "--shape", 32768, "--window", 2048, "--json")[1])
    assert line["recommended"]["stride"] == [256]
    assert line["recommended"]["block_sparse"]
    assert line["combinations"] == 2048


def test_what_is_asked_for_stands_beside_what_is_best(capsys, tmp_path: Path):
    plot = tmp_path / "s.png"
    problem = ("--shape", "30x48x80", "--window", "18x24x24", "--stride", "16x8x8")
    code, out, err = call(capsys, "simulate", *problem, "--tile-q", "4x4x8", "--tile-kv", "2x8x8", "--plot", plot)
    assert (code, err) == (0, "")
    assert "asked        16×8×8    11.11×    10.42×" in out
    assert "10,368 combinations of strides counted." in out
    assert plot.read_bytes().startswith(b"\x89PNG")
    content = json.loads(call(capsys, "simulate", *problem, "--json")[1])
    spec = NeighborhoodSpec.create(3, (18, 24, 24), stride=(16, 8, 8))
    expected = simulate((30, 48, 80), spec, content["asked"]["tile_q"], content["asked"]["tile_kv"])
    assert content["asked"]["visited_tiles"] == expected.visited_tiles
    assert content["asked"]["tile_bound"] == pytest.approx(expected.tile_bound)


def test_a_window_of_minus_one_is_the_whole_axis(capsys):
    whole = json.loads(call(capsys, "simulate", "--shape", "16x32", "--window", "-1x8", "--json")[1])
    assert whole["kernel_size"] == [16, 8]
    assert whole["sliding"]["flop_bound"] == pytest.approx(4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shape", "30xa", "--window", 3), "cannot read --shape '30xa'"),
        (("--shape", "30x40", "--window", "3x3x3"), "--window 3x3x3 has 3 values, --shape has 2"),
        (("--shape", "5x5", "--window", 7), "exceeds the length 5"),
        (("--shape", "9x9", "--window", 5, "--stride", 6), "stride must lie between 1 and kernel_size=5"),
        (("--shape", "9x9", "--window", 5, "--tile-q", "3x3"), "must both be given"),
        (("--shape", "9x9", "--window", 5, "--tile-size", 48), "power of two of tokens, got 48"),
        (("--shape", "0x9", "--window", 5), "--shape 0x9 has a value that is too small"),
    ],
)
def test_wrong_use_gives_one_sentence(capsys, arguments: tuple, message: str):
    code, out, err = call(capsys, "simulate", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_inspect_counts_the_layers_of_a_model(write_model: Callable[..., Path], capsys):
    model = write_model(size=64, dilations=(1, 2))
    code, out, _ = call(capsys, "inspect", model, "--bounds")
    assert code == 0
    assert "Upper bounds on the speedup over full attention" in out
    content = json.loads(call(capsys, "inspect", model, "--bounds", "--json")[1])
    assert [found["flop_bound"] for found in content["bounds"].values()] == pytest.approx([16**2 / 9] * 2)
    assert all(1 <= found["tile_bound"] <= found["flop_bound"] for found in content["bounds"].values())
