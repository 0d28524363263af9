"""Inputs and outputs of the command line that are closed."""

import sys
from pathlib import Path

import pytest

from egic.cli import coding, files
from egic.cli.coding import Result
from egic.cli.files import Task
from egic.errors import UserError


def test_closed_standard_streams_are_users_mistakes_only_where_they_are_used(monkeypatch):
    """As with `<&-` and `>&-`: Python then has no such stream."""
    monkeypatch.setattr(sys, "__stdout__", None)
    monkeypatch.setattr(sys, "stdin", None)
    files.check_free(Task(source=None, target=Path("x.egic")), force=False)
    with pytest.raises(UserError, match="stdout is closed; name a file with -o"):
        files.check_free(Task(source=Path("x.png"), target=None), force=True)
    with pytest.raises(UserError, match="stdin is closed"):
        files.read(Task(source=None, target=Path("x.egic")))


def test_names_with_escape_codes_are_printed_as_text(capsys):
    task = Task(source=Path("new\nline\x1b[31m.png"), target=Path("y\x1b.egic"))
    results = Result(notes=["it has 2 frames"], stats="1 bpp", line=f"{task.made}: 9 bytes"), Result(error="damaged")
    assert coding.report([task, task], results) == 2
    shown = capsys.readouterr()
    assert "\x1b" not in shown.err + shown.out and shown.err.count(r"new\x0aline\x1b[31m.png") == 3
    assert shown.out == "new\\x0aline\\x1b[31m.png: 1 bpp\n"
