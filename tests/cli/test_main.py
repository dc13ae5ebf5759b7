"""The command line turns every outcome into one sentence and an exit code."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from na_deploy.cli import main as cli_main
from na_deploy.errors import UsageError, VerificationError


def raising(error: BaseException) -> click.Command:
    @click.command()
    def command() -> None:
        raise error

    return command


@pytest.fixture
def fails_with(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def run(error: BaseException, *options: str) -> tuple[int, str]:
        monkeypatch.setattr(cli_main._Commands, "get_command", lambda *_: raising(error))
        code = cli_main.run([*options, "doctor"])
        return code, capsys.readouterr().err

    return run


def test_help_lists_every_command_without_importing_any():
    script = (
        "import sys; from na_deploy.cli.main import run; code = run(['--help']);"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'numpy', 'rich', 'PIL', 'matplotlib'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for name in cli_main.COMMANDS:
        assert name in result.stdout


def test_no_arguments_prints_the_help(capsys):
    assert cli_main.run([]) == 0
    assert "Commands" in capsys.readouterr().out


def test_version_is_the_packages(capsys):
    import na_deploy

    assert cli_main.run(["--version"]) == 0
    assert na_deploy.__version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["no-such-command"], ["--no-such-option"], ["run"], ["run", "m", "i", "--top", "0"]]
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments, capsys):
    assert cli_main.run(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert "--help" in message


@pytest.mark.parametrize(("error", "code"), [(UsageError("too small"), 2), (VerificationError("too small"), 1)])
def test_a_foreseen_failure_is_its_sentence_and_its_exit_code(fails_with, error, code):
    assert fails_with(error) == (code, "error: too small\n")


def test_an_unforeseen_failure_is_reported_as_a_defect(fails_with):
    code, message = fails_with(KeyError("lost"))
    assert code == 1
    assert message.count("\n") == 1
    assert "KeyError" in message
    assert "--debug" in message
    assert "Traceback" not in message


def test_debug_shows_the_traceback(fails_with):
    code, message = fails_with(UsageError("too small"), "--debug")
    assert code == 2
    assert "Traceback" in message
    assert message.endswith("error: too small\n")


def test_ctrl_c_leaves_with_130(fails_with):
    code, message = fails_with(KeyboardInterrupt())
    assert code == 130
    assert "Traceback" not in message


def test_a_reader_that_goes_away_is_no_defect():
    script = "from na_deploy.cli.main import main; main(['--help'])"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait() == 1
