"""Archives as users make them, in processes of their own, without the packages of egic[train]."""

import subprocess
import sys

import pytest

from tests.archives import ROOT, Archiving, archived_with_kills, check, rows_of, without_training_extra


@pytest.mark.parametrize("command", ["compress", "decompress"])
def test_mistakes_are_one_line_without_the_training_extra(command, tmp_path):
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": without_training_extra(tmp_path / "blocker"), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", f"jobs.{command}", "none", str(tmp_path / "out"), "-m", "nowhere"],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: --model nowhere: no such folder")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_kills_cost_the_pictures_in_hand_and_bad_pictures_are_rows(tmp_path):
    names, _ = archived_with_kills(tmp_path, 40)
    (tmp_path / "in" / "new.png").write_bytes((tmp_path / "in" / names[0]).read_bytes())
    (tmp_path / "in" / "bad.jpg").write_bytes(b"no picture")
    with Archiving(tmp_path, "compress", "in", "out", "--quality", "40") as run:
        assert run.end() == 2
        text = run.text()
    assert "42 pictures, 2 of them to code" in text and "bad.jpg: " in text and "1 failed; their rows in" in text
    rows = rows_of(tmp_path / "out")
    assert sorted(rows) == sorted([*names, "new.png", "bad.jpg"]) and rows["bad.jpg"]["error"]
    (tmp_path / "in" / "bad.jpg").write_bytes((tmp_path / "in" / names[0]).read_bytes())
    with Archiving(tmp_path, "compress", "in", "out", "--quality", "40") as run:  # a repaired picture is coded
        assert run.end() == 0, run.text()
    check(tmp_path / "out", [*names, "new.png", "bad.jpg"], ".egic")
