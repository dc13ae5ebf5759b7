"""The commands are one: the same answer to the same mistake, help by topics, output that any terminal can show."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from na_deploy.cli.main import run


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
    from na_deploy.cli.main import cli

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
    from na_deploy.runtime.session import SESSION_BACKENDS

    (backend,) = [parameter for parameter in command.params if parameter.name == "backend"]
    assert sorted(backend.type.choices) == sorted(SESSION_BACKENDS)
