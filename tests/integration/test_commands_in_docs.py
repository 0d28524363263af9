"""Every command that README.md, CONTRIBUTING.md, docs/ and infra/README.md show is run, or parsed by its own parser.

A fenced block without a language or with `sh` has commands, a `python` block a program, `text` neither. Blocks are
run, in the order of the page, in a folder with a picture and a registered model. `<!-- parse: REASON -->` on the line
before it keeps it from running: bash reads it, with programs that only note how they were called, and each call then
goes as far as its parser, so that a flag that is gone fails. infra/README.md is parsed as a whole.
"""

import contextlib
import io
import re
import runpy
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jobs.config.flags
from egic.artifact import save
from egic.cli import main
from jobs.tracking import model_registry, store
from tests.codec_models import tiny_model

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "infra/README.md"]
FENCE = re.compile(r"^(?:<!-- (parse): (\S[^\n]*) -->\n)?```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OURS = ("egic", "python", "make", "pip", "sbatch", "ray")
FOREIGN = ("jupytext", "jupyter", "docker", "kubectl", "cp", "mkdir", "chmod", "base64")
"""Programs whose arguments are not checked. Programs in neither list fail the test."""
NOTE = """#!/bin/bash
printf '%s\\0' "${0##*/}" "$@" $'\\n' >> "$CALLS"  # one write, since programs may run in parallel
"""


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    run: bool

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning"),  # run a second time, as scripts
]
READ = jobs.config.flags.one_line


class Parsed(BaseException):
    """Raised when a command line was parsed, to stop before it runs. Not an Exception, which programs would report."""


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text()
        matches = list(FENCE.finditer(text))
        assert len(re.findall("^```", text, re.MULTILINE)) == 2 * len(matches), f"{page}: a fence is not closed"
        for m in matches:
            line = text.count("\n", 0, m.start(4)) + 1
            run = not m[1] and page.parent.name != "infra"
            found.append(Block(page=page, line=line, language=m[3], text=m[4], run=run))
    return [b for b in found if b.language in ("", "sh", "python")]


def where(run: bool):
    return pytest.mark.parametrize("block", [b for b in blocks() if b.run == run], ids=str)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A user's folder: a picture, links to the checkout's files, and programs that record their arguments."""
    folder = tmp_path_factory.mktemp("user")
    for name in ("pipelines", "docs", "infra", "requirements.txt"):
        (folder / name).symlink_to(ROOT / name)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (48, 40, 3), np.uint8)).save(folder / "photo.jpg")
    (folder / "bin").mkdir()
    for name in (*OURS, *FOREIGN):
        program = folder / "bin" / name
        program.write_text(NOTE)
        program.chmod(0o755)
    return folder


def calls(script: str, folder: Path) -> list[list[str]]:
    """The commands that bash runs for a script, as words; the programs of `place` are the only ones on its PATH."""
    noted, unknown = folder / "calls", folder / "calls.unknown"
    for path in (noted, unknown):
        path.unlink(missing_ok=True)
    env = {"PATH": str(folder / "bin"), "HOME": str(folder), "CALLS": str(noted)}
    # an unknown program fails the test, wherever it is called; a missing file does not
    guard = 'command_not_found_handle() { echo "$1" >> "$CALLS.unknown"; }\n'
    done = subprocess.run(
        ["/bin/bash", "-c", guard + script + "\nwait"], cwd=folder, env=env, capture_output=True, text=True, timeout=120
    )
    assert not unknown.exists(), f"no check for {unknown.read_text()}"
    assert "syntax error" not in done.stderr, done.stderr
    return [call.split("\0") for call in noted.read_text().split("\0\n\0")[:-1]] if noted.exists() else []


def parse(words: list[str], folder: Path, monkeypatch) -> None:
    """Take a command as far as its parser; fails when that refuses."""
    name, *rest = words
    if name == "egic":
        if rest[0] in ("evaluate", "compare"):
            parsed(lambda: main.main(rest), monkeypatch)
        else:
            main.parser().parse_args(rest)
    elif name == "python" and rest[0] == "-m":
        monkeypatch.setattr(sys, "argv", rest[1:])
        parsed(lambda: runpy.run_module(rest[1], run_name="__main__", alter_sys=True), monkeypatch)
    elif name == "python":
        source = (folder / rest[0]).read_text()
        monkeypatch.setattr(sys, "argv", rest)
        if "__main__" in source:  # otherwise it has no arguments
            printed = parsed(lambda: runpy.run_path(str(ROOT / rest[0]), run_name="__main__"), monkeypatch)
            if "--print-config" in rest:  # bash has created the output file
                next(path for path in folder.glob("*.yaml") if not path.stat().st_size).write_text(printed)
    elif name == "make":
        done = subprocess.run(["make", "--dry-run", *rest], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    elif name == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert {e for word in rest for m in re.findall(r"\[(.+)]", word) for e in m.split(",")} <= extras.keys()
    elif name == "ray" and "--" in rest:  # a job
        parse(rest[rest.index("--") + 1 :], folder, monkeypatch)
    elif name == "sbatch":  # the script passes its arguments on
        parse(["python", "pipelines/full.py", *rest[rest.index("infra/slurm.sh") + 1 :]], folder, monkeypatch)


def parsed(run, monkeypatch) -> str:
    """Run one of our programs until it has parsed its command line; returns its output."""

    def and_stop(parser, prog):
        READ(parser, prog)
        raise Parsed

    if "--print-config" not in sys.argv:
        monkeypatch.setattr(jobs.config.flags, "one_line", and_stop)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            run()
        except Parsed:
            pass
        except SystemExit as end:
            assert end.code in (0, None), f"exit status {end.code}"  # --help, --print-config
    monkeypatch.setattr(jobs.config.flags, "one_line", READ)
    return printed.getvalue()


@where(run=False)
def test_commands_that_cannot_run_here_are_parsed(block, place, monkeypatch):
    monkeypatch.chdir(place)
    found = calls(block.text, place)
    assert found or "export" in block.text
    for words in found:
        parse(words, place, monkeypatch)


@pytest.fixture(scope="module")
def trained(place) -> Path:
    """The user's folder with a registered model, which is also in path/of/an/artifact."""
    tiny = tiny_model()
    artifact = place / "path/of/an/artifact"
    save(artifact, {"codec": tiny.codec, "orp": tiny.orp}, {"stage": "orp"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}/mlflow.db")
        published = model_registry.publish_folder(artifact)
        store.client().set_registered_model_alias("egic-orp", "best", str(published.model_version))
    return place


@pytest.mark.slow
@where(run=True)
def test_commands_of_the_docs_run(block, trained, monkeypatch, one_thread):
    monkeypatch.chdir(trained)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{trained}/mlflow.db")
    monkeypatch.setenv("EGIC_CACHE", str(trained / "cache"))
    if block.language == "python":
        exec(compile(block.text, str(block), "exec"), {})
        return
    for words in calls(block.text, trained):
        assert words[0] == "egic", f"{words[0]} is not run here: give the block a reason, <!-- parse: ... -->"
        assert main.main(words[1:]) == 0
        assert all((trained / output).exists() for flag, output in zip(words, words[1:], strict=False) if flag == "-o")


def test_invalid_flags_are_detected(place, monkeypatch):
    monkeypatch.chdir(place)
    for line in (
        "egic compress a.png -m m --quick", "egic evaluate --model m --fast", "python pipelines/full.py tiny --sed 1",
        "python -m jobs.gan tiny --gan.emma 0.9", "ray job submit -- python pipelines/full.py papers", "make demmo",
        "sbatch infra/slurm.sh paper --dat x", "pip install '.[trian]'", "make demo && unknown",
    ):  # fmt: skip
        with pytest.raises((SystemExit, AssertionError)):
            for words in calls(line, place):
                parse(words, place, monkeypatch)
