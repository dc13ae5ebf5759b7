"""Code blocks of the documentation: found, and run as a reader who follows the document in order would run them.

A fenced block is a shell's (``bash``, or ``console`` with ``$``) or ``python``; everything else is text. A comment on
the line before a block says what a reader knows from the text around it:

    <!-- not run: REASON -->      the block cannot be run here
    <!-- file: NAME -->           the block is the content of a file
    <!-- after: DOCUMENT -->      anywhere: the document goes on from another one's files
"""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from na_deploy.cli.main import run

ROOT = Path(__file__).parents[2]
SHELLS = ("bash", "console")
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\s*$")
_COMMENT = re.compile(r"^\s*<!-- (not run|file|after): (.+?) -->\s*$")
_COMMAND = re.compile(r"^ {4}(\$ )?(na-deploy|python3?|pip|pytest|bash|import|from \w+ import)\b")


@dataclass(frozen=True)
class Block:
    """One code block.

    Attributes:
        document: its file, from the repository's root.
        line: number of its first line.
        language: the word behind the fence.
        text: its content.
        not_run: the reason why it is not run, empty if it is.
        file: name of the file whose content it is, empty if it is run.
    """

    document: str
    line: int
    language: str
    text: str
    not_run: str = ""
    file: str = ""

    @property
    def place(self) -> str:
        """The block's place, for messages."""
        return f"{self.document}:{self.line}"

    @property
    def is_run(self) -> bool:
        """Tell whether it is commands or Python that can be run."""
        return not self.not_run and self.language in (*SHELLS, "python")

    @property
    def commands(self) -> list[list[str]]:
        """The words of every shell command in it, without comments."""
        lines = self.text.replace("\\\n", " ").split("\n")
        if self.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def documents() -> list[str]:
    """Return the documents whose blocks are looked at, the README first."""
    found = [*ROOT.glob("docs/*.md"), *ROOT.glob("docs/natten/*.md")]
    return ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in found)]


def blocks(document: str) -> list[Block]:
    """Return the code blocks of a document in order."""
    found: list[Block] = []
    said: dict[str, str] = {}
    fence, start, language, content = "", 0, "", list[str]()
    for number, line in enumerate((ROOT / document).read_text(encoding="utf-8").splitlines(), 1):
        mark = _FENCE.match(line)
        if fence:
            if mark and not mark["language"]:
                text = "\n".join(each.removeprefix(fence[:-3]) for each in content)
                found.append(Block(document, start, language, text, said.get("not run", ""), said.get("file", "")))
                fence, said, content = "", {}, []
            else:
                content.append(line)
        elif mark:
            fence, start, language = f"{mark['indent']}```", number + 1, mark["language"]
        elif comment := _COMMENT.match(line):
            said = {comment[1]: comment[2]}
        elif line.strip():
            said = {}
    return found


def continued(document: str) -> str | None:
    """Return the document whose files this one goes on from."""
    for line in (ROOT / document).read_text(encoding="utf-8").splitlines():
        if (comment := _COMMENT.match(line)) and comment[1] == "after":
            return ((ROOT / document).parent / comment[2]).resolve().relative_to(ROOT).as_posix()
    return None


def unfenced_commands(document: str) -> list[str]:
    """Return lines of indented blocks that are commands or code, and so belong into a fenced block."""
    lines = (ROOT / document).read_text(encoding="utf-8").splitlines()
    return [line for before, line in zip(["", *lines], lines, strict=False) if not before and _COMMAND.match(line)]


class Reader:
    """A reader with one folder, who runs documents from first to last block, each document once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ran: dict[str, int] = {}
        (folder / "examples").symlink_to(ROOT / "examples")

    def follow(self, document: str, patch: pytest.MonkeyPatch) -> int:
        """Run a document's blocks, after those of the documents that it goes on from; return how many it has."""
        if document not in self.ran:
            before = continued(document)
            if before is not None:
                self.follow(before, patch)
            patch.chdir(self.folder)
            patch.syspath_prepend(self.folder)
            self.ran[document] = self._run(document, patch)
        return self.ran[document]

    def _run(self, document: str, patch: pytest.MonkeyPatch) -> int:
        space: dict[str, Any] = {"__name__": document}
        count = 0
        for block in blocks(document):
            if not block.is_run:
                continue
            count += 1
            if block.file:
                (self.folder / block.file).write_text(block.text + "\n", encoding="utf-8")
            elif block.language == "python":
                exec(compile(block.text, block.place, "exec"), space)  # the documentation is the project's own
            else:
                for words in block.commands:
                    self._command(words, block, patch)
        return count

    def _command(self, words: list[str], block: Block, patch: pytest.MonkeyPatch) -> None:
        program, *arguments = words
        if program == "na-deploy":
            assert run(arguments) == 0, f"{block.place}: {shlex.join(words)}"
        elif program == "python":
            with patch.context() as inside:
                inside.setattr(sys, "argv", arguments)
                inside.syspath_prepend(str(Path(arguments[0]).parent))
                runpy.run_path(arguments[0], run_name="__main__")
        elif program == "mkdir":
            (self.folder / arguments[0]).mkdir()
        else:
            raise AssertionError(f"{block.place}: {program} cannot be run in a test; mark the block")
