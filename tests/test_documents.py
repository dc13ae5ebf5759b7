"""The documentation can be followed: its blocks run as printed, in order, and its commands are those there are."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from pathlib import Path

import click
import pytest
from documents import ROOT, SHELLS, Block, Reader, blocks, documents, unfenced_commands

from na_deploy.cli.main import cli

MOST_NOT_RUN = {
    "needs a GPU": 7,
    "needs a published checkpoint": 3,
    "needs the operator library": 3,
    "needs the reader's model": 1,
    "needs the reader's pictures": 2,
    "C++": 2,
    "needs Docker": 2,
    "installs packages": 4,
    "compiles": 6,
    "compares with a build of another commit": 1,
    "takes minutes": 18,
    "runs until it is stopped": 4,
}
"""Reasons why a block is not run, and how many blocks may have each."""


def all_blocks() -> list[Block]:
    return [block for document in documents() for block in blocks(document)]


def followed() -> dict[str, int]:
    """Return the number of blocks that are run, by document."""
    return Counter(block.document for block in all_blocks() if block.is_run)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(tmp_path_factory.mktemp("reader"))


@pytest.mark.parametrize("document", followed())
def test_blocks_run_as_printed_from_first_to_last(
    document: str, reader: Reader, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert reader.follow(document, monkeypatch) == followed()[document], capsys.readouterr().err


def test_every_block_is_run_or_says_why_not():
    reasons = (block.not_run.partition(";")[0] for block in all_blocks() if block.not_run)  # a remark may follow
    for reason, count in Counter(reasons).items():
        assert count <= MOST_NOT_RUN.get(reason, 0), f"{count} blocks are not run because: {reason}"
    assert sum(followed().values()) >= 12
    assert {"README.md", "docs/engines.md", "docs/triton.md", "docs/natten/README.md"} <= followed().keys()
    for document in documents():
        assert unfenced_commands(document) == [], f"{document}: put commands into a fenced block"


def commands() -> list[tuple[str, list[str]]]:
    found = [(block.place, words) for block in all_blocks() if block.language in SHELLS for words in block.commands]
    for document in documents():
        text = re.sub(r"```.*?```", "", (ROOT / document).read_text(encoding="utf-8"), flags=re.DOTALL)
        for line in re.findall(r"`(na-deploy [a-z][^`]*)`", text):
            found.append((document, shlex.split(line.replace("\n", " "))))
    return found


def test_every_command_and_option_that_is_printed_exists():
    checked = 0
    for place, words in commands():
        if words[0] in ("python", "bash") and not words[1].startswith("-"):
            assert (ROOT / words[1]).is_file(), f"{place}: {words[1]} is not there"
        if words[0] != "na-deploy":
            continue
        found = cli.get_command(click.Context(cli), words[1])
        assert found is not None, f"{place}: {shlex.join(words)}"
        arguments = words[2 : words.index("&&")] if "&&" in words else words[2:]
        try:
            found.make_context(words[1], list(arguments))
        except click.MissingParameter:  # a command's name in a sentence
            pass
        except click.ClickException as error:
            pytest.fail(f"{place}: {shlex.join(words)}: {error.format_message()}")
        checked += 1
    assert checked > 60


def test_links_between_documents_lead_somewhere():
    for document in documents():
        folder = (ROOT / document).parent
        for target in re.findall(r"\]\(([^)#\s]+)", (ROOT / document).read_text(encoding="utf-8")):
            if "://" not in target:
                assert (Path(folder) / target).exists(), f"{document}: {target}"
