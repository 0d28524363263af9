"""`egic --print-completion bash`: commands, options and paths are completed."""

import os
import subprocess

import pytest

from egic.cli import main


@pytest.mark.parametrize(
    "words, expected",
    [
        ("egic com", "compress|compare|"),
        ("egic compress --qu", "--quiet|--quality|"),
        ("egic compress pho", "photo.png|"),
        ("egic decompress -m pho", "photo.png|"),
        ("egic decompress --precision b", "bfloat16|"),
        ("egic evaluate --evaluate.me", "--evaluate.metrics|"),
        ("egic evaluate --images pho", "photo.png|"),
        ("egic compare --ex", "--experiment|"),
    ],
)
def test_bash_completes_words(words, expected, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(main._Parser, "path_completion", None)  # restored at the end
    with pytest.raises(SystemExit) as end:
        main.main(["--print-completion", "bash"])
    assert not end.value.code
    (tmp_path / "script.sh").write_text(capsys.readouterr().out)
    (tmp_path / "photo.png").touch()
    words = words.split()
    ask = f"source script.sh; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _shtab_egic; "
    ask += "printf '%s|' \"${COMPREPLY[@]}\""
    done = subprocess.run(
        ["bash", "-c", ask], cwd=tmp_path, env={"PATH": os.defpath}, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == expected, done.stderr
