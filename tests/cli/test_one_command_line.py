"""The commands are one: the same answer to the same mistake, help by topics, output that any terminal can show."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from rich.console import Console

from na_deploy.cli import gpu_cases
from na_deploy.cli.main import COMMANDS, cli, run
from na_deploy.cli.output import table
from na_deploy.errors import MissingDependencyError
from na_deploy.runtime.tensorrt.api import RTX, TENSORRT, Flavor, load_module


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "nothing.onnx", "x.jpg"],
        ["inspect", "nothing.onnx"],
        ["bench", "nothing.onnx"],
        ["eval", "nothing.onnx", "--images", "folder"],
        ["verify", "nothing.pth", "nothing.onnx"],
        ["build", "nothing.onnx", "-o", "x.bundle"],
        ["package", "nothing.onnx", "-o", "repository"],
        ["serve", "nothing.onnx"],
        ["export", "nothing.pth", "-o", "x.onnx"],
        ["run", "nothing.zip", "x.jpg"],
    ],
)
def test_a_missing_file_is_said_in_the_same_words(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    message = capsys.readouterr().err
    assert "does not exist; give " in message
    assert message.startswith("error: nothing.")


def test_a_mistyped_command_is_answered_with_the_one_that_was_meant(capsys: pytest.CaptureFixture[str]):
    assert run(["exprot", "x"]) == 2
    assert "there is no command 'exprot'; did you mean export?" in capsys.readouterr().err
    assert run(["zzz"]) == 2
    assert "there are export, " in capsys.readouterr().err


@pytest.mark.parametrize(("command", "heading"), [("serve", "Limits:"), ("package", "Batches and queue:")])
def test_help_of_many_options_has_headings_and_no_option_is_lost(
    command: str, heading: str, capsys: pytest.CaptureFixture[str]
):
    assert run([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert heading in text
    found = cli.get_command(None, command)
    assert found is not None
    for parameter in found.params:
        for option in parameter.opts:
            if option.startswith("--"):
                assert text.count(f"{option} ") + text.count(f"{option}\n") + text.count(f"{option}/") >= 1, option
    headed = {name for names in found.groups.values() for name in names}
    assert headed <= {parameter.name for parameter in found.params}


def test_output_survives_a_terminal_that_knows_ascii_only():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    program = [sys.executable, "-c", "from na_deploy.cli.main import main; main()"]
    for arguments in (["models"], ["doctor"], ["simulate", "--shape", "8x8", "--window", "3x3"], ["nothing", "×"]):
        result = subprocess.run([*program, *arguments], env=environment, capture_output=True, check=False)
        assert b"defect" not in result.stderr
        assert (result.stdout + result.stderr).isascii()
        assert result.stdout or result.stderr


def test_serve_prints_where_it_serves_as_json(tmp_path: Path):
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "graph", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    program = [sys.executable, "-c", "from na_deploy.cli.main import main; main()", "serve", str(tmp_path / "m.onnx")]
    options = ["--port", "0", "--grpc-port", "0", "--json", "--drain-delay", "0"]
    with subprocess.Popen(
        [*program, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or lines[-1] != "}\n":
            lines.append(process.stdout.readline())
            assert lines[-1], "the server ended"
        found = json.loads("".join(lines))
        import tritonclient.http as client

        with client.InferenceServerClient(found["http"].removeprefix("http://")) as server:
            tensor = client.InferInput("x", [1, 4], "FP32").set_data_from_numpy(np.ones((1, 4), np.float32))
            assert server.infer(found["models"][0]["name"], [tensor]).as_numpy("y").tolist() == [[1, 1, 1, 1]]
        assert found["grpc"].startswith("127.0.0.1:")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("na-deploy ser", "serve"), ("na-deploy export --dt", "--dtype"), ("na-deploy export --dtype f", "fp16")],
)
def test_the_shell_completes_commands_options_and_choices(typed: str, offered: str):
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" ")), "_NA_DEPLOY_COMPLETE": "bash_complete"}
    program = [sys.executable, "-c", "from na_deploy.cli.main import main; main()"]
    result = subprocess.run(program, env=os.environ | words, capture_output=True, text=True, check=False)
    assert f"plain,{offered}" in result.stdout.splitlines()


def test_run_offers_every_backend_that_sessions_have():
    from na_deploy.cli.run import command
    from na_deploy.runtime.backend_names import AUTO, SESSION_BACKENDS

    (backend,) = [parameter for parameter in command.params if parameter.name == "backend"]
    assert sorted(backend.type.choices) == sorted((*SESSION_BACKENDS, AUTO))


def options_of(command: str) -> dict[str, click.Option]:
    found = cli.get_command(click.Context(cli), command)
    assert found is not None
    return {name: option for option in found.params if isinstance(option, click.Option) for name in option.opts}


@pytest.mark.parametrize("command", ["run", "bench", "serve", "verify"])
def test_every_command_that_runs_a_model_takes_backend_precision_device_and_threads(command: str):
    own, model = options_of(command), options_of("run")
    for name in ("--precision", "--device", "--threads"):
        assert own[name].help == model[name].help
        assert type(own[name].type) is type(model[name].type)
    assert "--backend" in own


def test_the_same_thing_has_the_same_word_everywhere():
    options = {command: options_of(command) for command in COMMANDS}
    for command, own in options.items():
        assert not [name for name in own if name.endswith("-us")], "times are in milliseconds or seconds"
        if "--input" in own:
            assert own["--input"].metavar == "1x3x224x224", command
            assert own["--input"].multiple, command
        if command not in ("build", "simulate"):  # ranges of an engine's sizes; kernels' tiles
            assert "--size" not in own, command
    assert "--batch-delay-ms" in options["package"]
    assert "--batch-delay-ms" in options["serve"]


def test_choices_on_the_command_line_are_those_of_the_code_they_choose_from():
    from na_deploy.deployment.options import DEVICES, PACKAGE_BACKENDS
    from na_deploy.exporter.options import DTYPES, PARTS
    from na_deploy.models.metadata import SEGMENT_TASKS
    from na_deploy.runtime.backend_names import BUNDLE_BACKENDS, PLUGINS, PRECISIONS

    for command, option, known in (
        ("build", "--backend", BUNDLE_BACKENDS),
        ("build", "--plugins", PLUGINS),
        ("run", "--precision", PRECISIONS),
        ("export", "--dtype", DTYPES),
        ("export", "--part", PARTS),
        ("export", "--task", SEGMENT_TASKS),
        ("run", "--task", SEGMENT_TASKS),
        ("package", "--backend", PACKAGE_BACKENDS),
        ("package", "--device", DEVICES),
    ):
        kind = options_of(command)[option].type
        assert isinstance(kind, click.Choice)
        assert tuple(kind.choices)[: len(known)] == tuple(known), (command, option)


@pytest.mark.parametrize("width", [60, 44])
def test_tables_on_a_narrow_screen_stack_instead_of_breaking_words(width: int, capsys: pytest.CaptureFixture[str]):
    listing = table("target", "input", "p50 ms", "runs on", right=("p50 ms",), title="A title")
    listing.add_row("dinat_tiny.onnx, function bodies", "1×3×224×224", "12.33", "onnxruntime CPU, [dim]some[/] bodies")
    listing.add_row("dinat_tiny.onnx", "1×3×224×224", "", "onnxruntime CPU, operator library")
    Console(width=width, highlight=False).print(listing)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    for word in ("dinat_tiny.onnx, function bodies", "1×3×224×224", "12.33", "operator", "library", "onnxruntime"):
        assert word in out
    assert [line.rstrip() for line in out.splitlines()][:4] == [
        "A title",
        "dinat_tiny.onnx, function bodies",
        "  input    1×3×224×224",
        "  p50 ms   12.33",
    ]
    assert out.count("p50 ms") == 1  # what says nothing is left out
    Console(width=120, highlight=False).print(listing)
    assert "target" in capsys.readouterr().out


def test_cases_that_miss_the_same_thing_are_one_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def missing(_bench: object) -> str:
        raise MissingDependencyError(f"TensorRT is not installed; install it with: {TENSORRT.install}")

    def works(_bench: object) -> str:
        return "1 GPU"

    monkeypatch.setattr(gpu_cases, "CASES", {"machine": works} | {f"case {number}": missing for number in range(12)})
    assert run(["doctor", "--gpu"]) == 0
    out = capsys.readouterr().out
    assert out.count("TensorRT is not installed") == 1
    assert "case 0 and 11 more" in out
    assert "1 passed, 12 skipped, 0 failed" in out


@pytest.mark.parametrize("flavor", [RTX, TENSORRT], ids=["rtx", "tensorrt"])
def test_an_engine_library_is_installed_by_the_same_line_everywhere(flavor: Flavor, monkeypatch: pytest.MonkeyPatch):
    from na_deploy.runtime import environment

    absent = replace(flavor, modules=("no_such_module",))
    with pytest.raises(MissingDependencyError) as refused:
        load_module(absent)
    assert flavor.install in str(refused.value)
    monkeypatch.setattr(environment, "RTX", replace(RTX, modules=("no_such_module",)))
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    title = {"tensorrt-rtx": "TensorRT-RTX", "tensorrt": "tensorrt"}[flavor.backend]
    (found,) = [component for component in environment.examine() if component.name == title]
    assert found.remedy == flavor.install
    line = flavor.install.partition(" (")[0]
    assert f"`{line}`" in (Path(__file__).parents[2] / "docs" / "engines.md").read_text(encoding="utf-8")
