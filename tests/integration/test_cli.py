"""The command line as users run it: processes, files and pipes."""

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import egic as egic_package
from egic import artifact
from egic.cli import main
from egic.coding import bitstream
from egic.model import load
from tests.codec_models import full_model, tiny_model

ROOT = Path(__file__).resolve().parents[2]


def egic(*arguments, stdin: bytes = b"", timeout: float = 120, env: dict | None = None) -> subprocess.CompletedProcess:
    """`python -m egic ...` in a process of its own, one thread."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | (env or {})
    command = [sys.executable, "-m", "egic", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=timeout, env=env)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "orp"
    tiny = tiny_model()
    artifact.save(folder, {"codec": tiny.codec, "orp": tiny.orp}, {})
    artifact.save(folder.with_name("mse"), {"codec": tiny.codec}, {})
    artifact.save(folder.with_name("rates"), {"codec": tiny_model(rates=6).codec}, {})
    return folder


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "in"
    (folder / "deeper").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (48, 40, 3)), ("b.jpg", (1, 1, 3)), ("deeper/c.webp", (17, 30, 3))):
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(autouse=True)
def one_core(monkeypatch):
    """Folders are coded in this process: starting others takes seconds. `several_cores` undoes it."""
    monkeypatch.setattr("joblib.cpu_count", lambda: 1)


@pytest.fixture
def several_cores(one_core, monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)


def run(*arguments) -> int:
    """The command line in this process."""
    try:
        return main.main([str(a) for a in arguments])
    except SystemExit as end:  # argparse
        return end.code


def test_help_and_info_need_no_torch(pictures, model):
    assert run("compress", pictures / "a.png", "--model", model) == 0
    script = "import sys; from egic.cli import main; main.main(sys.argv[1:]); assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", script, "info", str(pictures / "a.egic")], capture_output=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0 and b"40 x 48" in done.stdout, done.stderr


def test_separate_processes_and_pipes(pictures, model, tmp_path):
    png = (pictures / "a.png").read_bytes()
    compressed = egic("compress", "-", "--model", model, stdin=png)
    assert compressed.returncode == 0 and compressed.stdout[:4] == b"EGIC", compressed.stderr
    assert b"40 x 48" in egic("info", "-", stdin=compressed.stdout).stdout
    decoded = egic("decompress", "-", "--model", model, "--alpha", "0.5", stdin=compressed.stdout)
    assert decoded.returncode == 0, decoded.stderr
    x = np.asarray(Image.open(io.BytesIO(decoded.stdout)))
    from egic.model import load

    assert np.array_equal(x, load(model).decompress(compressed.stdout, 0.5))


def test_folders_of_pictures_are_coded(pictures, model, tmp_path, capsys):
    files, back = tmp_path / "files", tmp_path / "back"
    assert run("compress", pictures, "-o", files, "-m", model, "--stats") == 0
    out = capsys.readouterr()
    assert sorted(p.relative_to(files).as_posix() for p in files.rglob("*.egic")) == [
        "a.egic",
        "b.egic",
        "deeper/c.egic",
    ]
    assert "[3/3]" in out.err and out.out.count("dB PSNR") == out.out.count(" at alpha 1, ") == 3 and "bpp" in out.out
    assert run("decompress", files, "-o", back, "-m", model) == 0
    assert Image.open(back / "deeper" / "c.png").size == (30, 17)


def test_pictures_that_differ_only_in_their_suffix_have_separate_files(model, tmp_path):
    """a.jpg and a.png become a.jpg.egic and a.png.egic. So does a.jpg.webp, as its file would be a.jpg.egic, too."""
    for i, name in enumerate(("a.jpg", "a.png", "a.jpg.webp", "b.png")):
        Image.fromarray(np.full((9, 8 + i, 3), 100, np.uint8)).save(tmp_path / name)
    assert run("compress", tmp_path, "-o", tmp_path / "files", "-m", model) == 0
    sizes = {"a.jpg.egic": 8, "a.png.egic": 9, "a.jpg.webp.egic": 10, "b.egic": 11}
    found = {p.name: bitstream.unpack(p.read_bytes())[0].width for p in (tmp_path / "files").iterdir()}
    assert found == sizes
    assert run("decompress", tmp_path / "files", "-o", tmp_path / "back", "-m", model) == 0
    assert {p.name: Image.open(p).width for p in (tmp_path / "back").iterdir()} == {
        name.replace(".egic", ".png"): width for name, width in sizes.items()
    }


def test_a_warning_counts_files_of_unsupported_formats(pictures, model, capsys):
    for name in ("x.cr2", "y.CR2", "z.dng"):
        (pictures / "deeper" / name).touch()
    assert run("compress", pictures, "-m", model) == 0
    assert "2 .cr2, 1 .dng" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["compress", "decompress"])
def test_links_and_devices_in_folders_are_named(command, pictures, model, tmp_path, capsys):
    assert run("compress", pictures, "-m", model, "-o", tmp_path / "coded") == 0
    folder = pictures if command == "compress" else tmp_path / "coded"
    (folder / "deeper" / "linked").symlink_to(tmp_path)
    (folder / "gone.png").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.egic")
    capsys.readouterr()
    assert run(command, folder, "-m", model, "-o", tmp_path / "out") == 0
    warning = capsys.readouterr().err.splitlines()[0]
    assert warning.startswith("warning: left out: ") and "linked (a link to a folder, " in warning
    assert "gone.png (a broken link)" in warning and "pipe.egic (no regular file)" in warning


NAMES = [b"caf\xe9.png", b"100%.png", b"what?.png", b"#1 of 2.png", "日本.png".encode()]


def test_files_may_have_any_name(model, tmp_path):
    """With a strict UTF-8 terminal and with an ASCII terminal."""
    for encoding in ("utf-8:strict", "ascii:strict"):
        folder = tmp_path / encoding
        folder.mkdir()
        for name in NAMES:
            Image.new("RGB", (9, 9)).save(folder / os.fsdecode(name))
        done = egic("compress", folder, "-m", model, "--stats", env={"PYTHONIOENCODING": encoding})
        assert done.returncode == 0 and done.stderr.count(b"error") == 0, done.stderr
        assert len(list(folder.glob("*.egic"))) == len(NAMES)
        done = egic("info", *folder.glob("*.egic"), env={"PYTHONIOENCODING": encoding})
        assert done.returncode == 0 and done.stdout.count(b"9 x 9") == len(NAMES), done.stderr


@pytest.mark.parametrize("num", [3, 3000])
def test_a_closed_pipe_ends_the_command_without_a_message(num, pictures, model, tmp_path):
    """As in `egic info *.egic | head -1`; the lines of 3 files fit into the buffer, those of 3000 do not."""
    assert run("compress", pictures / "a.png", "-o", tmp_path / "a.egic", "-m", model) == 0
    command = [sys.executable, "-m", "egic", "info", *["a.egic"] * num]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if num > 3:
        done.stdout.readline()
    done.stdout.close()
    assert done.stderr.read() == b"" and done.wait(60) == 141
    done.stderr.close()


def test_quality_and_size_limits_are_met(pictures, model, tmp_path, capsys):
    """A higher quality makes a larger file; a size limit selects the highest quality that fits; `info` prints it."""
    a, rates, sizes = pictures / "a.png", model.with_name("rates"), {}
    for quality in (0, 50, 100):
        target = tmp_path / f"{quality}.egic"
        assert run("compress", a, "-o", target, "-m", rates, "--quality", quality) == 0
        assert f"at quality {quality}, " in capsys.readouterr().err
        assert run("info", target) == 0 and f"quality {quality}, format 2" in capsys.readouterr().out
        sizes[quality] = target.stat().st_size
    assert sizes[0] < sizes[50] < sizes[100]
    assert run("compress", a, "-o", tmp_path / "default.egic", "-m", rates, "--quiet") == 0
    assert (tmp_path / "default.egic").read_bytes() == (tmp_path / "50.egic").read_bytes()
    assert capsys.readouterr().err == ""
    limit, bpp = sizes[50] + 1, 8 * sizes[50] / (48 * 40)
    for option, value in (("--max-bytes", limit), ("--max-bytes", f"{limit / 1000}k"), ("--bpp", bpp + 1e-6)):
        assert run("compress", a, "-o", tmp_path / "x.egic", "-f", "-m", rates, option, value) == 0
        assert 0.9 * limit <= (tmp_path / "x.egic").stat().st_size <= limit


def test_one_line_is_printed_per_file(pictures, model, capsys):
    assert run("compress", pictures / "a.png", "-m", model) == 0
    line = capsys.readouterr().err
    assert line.startswith(f"{pictures / 'a.png'} -> {pictures / 'a.egic'}: ") and line.count("\n") == 1
    assert f" {(pictures / 'a.egic').stat().st_size} bytes, " in line
    assert run("decompress", pictures / "a.egic", "-o", pictures / "b.png", "-m", model) == 0
    line = capsys.readouterr().err
    assert line.startswith(f"{pictures / 'a.egic'} -> {pictures / 'b.png'}: 40 x 48, ") and line.count("\n") == 1
    assert run("decompress", pictures / "a.egic", "-o", pictures / "b.png", "-m", model, "-f", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_the_model_of_the_package_is_the_default(pictures, model, monkeypatch, capsys, tmp_path):
    """A model of the test replaces it."""
    monkeypatch.setattr("egic.shipped.FOLDER", model)
    monkeypatch.setattr("egic.cli.main.extension", lambda *_: lambda: [("models:/egic-orp/1", "@best")])
    assert run("compress", pictures / "a.png") == run("decompress", pictures / "a.egic", "-o", tmp_path / "b.png") == 0
    x = np.asarray(Image.open(pictures / "a.png"))
    data = (pictures / "a.egic").read_bytes()
    assert data == egic_package.load().compress(x)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "b.png")), egic_package.load(model).decompress(data))
    capsys.readouterr()
    assert run("models") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [str(model), "models:/egic-orp/1"]
    assert run("decompress", pictures / "a.egic", "-o", tmp_path / "c.png", "-m", model.with_name("rates")) == 2
    assert f"made with model {bitstream.unpack(data)[0].model_id.hex()}" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["compress", "demo"])
def test_a_package_without_a_model_is_a_clear_error(command, pictures, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("egic.shipped.FOLDER", tmp_path)
    assert run(command, *([pictures / "a.png"] if command == "compress" else ["--port", "0"])) == 2
    error = capsys.readouterr().err
    assert "built without a model; name one with --model" in error and error.count("\n") == 1


def test_suffixes_determine_formats(pictures, model, tmp_path):
    assert run("compress", pictures / "a.png", "-o", tmp_path / "x.egic", "-m", model) == 0
    for suffix, form in ((".png", "PNG"), (".webp", "WEBP"), (".tiff", "TIFF"), (".jpg", "JPEG")):
        assert run("decompress", tmp_path / "x.egic", "-o", tmp_path / f"y{suffix}", "-m", model) == 0
        assert Image.open(tmp_path / f"y{suffix}").format == form


def test_one_bad_file_does_not_stop_the_others(pictures, model, tmp_path, capsys):
    (pictures / "a.png").write_bytes(b"no picture")
    assert run("compress", pictures, "-o", tmp_path / "files", "-m", model) == 2
    assert "a.png" in (err := capsys.readouterr().err) and "1 of 3 failed" in err and "Traceback" not in err
    assert len(list((tmp_path / "files").rglob("*.egic"))) == 2
    (tmp_path / "files" / "b.egic").write_bytes(b"EGIC\x01damaged")
    assert run("decompress", tmp_path / "files", "-m", model) == 2
    assert [p.name for p in (tmp_path / "files").rglob("*.png")] == ["c.png"]


def without_times(text: str) -> str:
    return re.sub(r"\d+\.\d\d s", "TIME", text)


def test_folders_are_coded_in_processes_with_the_same_output(pictures, model, tmp_path, several_cores, capsys):
    """The files, their order, messages and status are those of one process; two bad pictures are among them."""
    (pictures / "a2.png").write_bytes(b"no picture")
    (pictures / "z.webp").write_bytes((pictures / "a.png").read_bytes()[:100])
    Image.new("LA", (20, 30)).save(pictures / "clear.png")
    printed, made = [], []
    for threads in (1, 2):
        files, back = tmp_path / "files", tmp_path / "back"
        statuses = [run("compress", pictures, "-o", files, "-m", model, "--stats", "--threads", threads)]
        statuses += [run("decompress", files, "-o", back, "-m", model, "--threads", threads)]
        assert statuses == [2, 0]
        printed.append(without_times("".join(capsys.readouterr())))
        made.append({path.relative_to(tmp_path): path.read_bytes() for f in (files, back) for path in f.rglob("*.*")})
        for folder in (files, back):
            shutil.rmtree(folder)
    assert printed[0] == printed[1] and "its transparency is replaced by white" in printed[1]
    assert made[0] == made[1] and len(made[0]) == 8


def test_a_mistake_is_one_line_when_it_is_seen_in_a_process(pictures, model, several_cores, capsys):
    assert run("compress", pictures, "-m", model, "--quality", "50") == 2
    err = capsys.readouterr().err
    assert err == "error: this model codes at one rate only, so --quality has no meaning: leave it out\n"


def test_one_picture_is_coded_without_another_process(pictures, model, several_cores, monkeypatch):
    monkeypatch.setitem(sys.modules, "egic.cli.processes", None)  # importing it fails
    assert run("compress", pictures / "a.png", "-m", model) == 0
    assert run("compress", pictures / "deeper", "-m", model) == 0


def test_outputs_are_not_overwritten_without_force(pictures, model, tmp_path, capsys):
    target = tmp_path / "x.egic"
    target.write_bytes(b"mine")
    arguments = ("compress", pictures / "a.png", "-o", target, "-m", model)
    assert run(*arguments) == 2 and target.read_bytes() == b"mine" and "--force" in capsys.readouterr().err
    assert run(*arguments, "--force") == 0 and target.read_bytes()[:4] == b"EGIC"


@pytest.mark.parametrize("command, inputs", [("compress", ["a.png", "b.jpg"]), ("decompress", ["a.egic", "b.egic"])])
def test_existing_outputs_are_refused_before_the_model_is_loaded(command, inputs, pictures, tmp_path, capsys):
    for name in ("a.egic", "b.egic", "a.png", "b.png"):
        (pictures / name).touch()
    inputs = [pictures / name for name in inputs]
    assert run(command, *inputs, "-m", tmp_path / "none") == 2
    assert "exists; --force overwrites it" in capsys.readouterr().err
    inputs[1].with_suffix(".egic" if command == "compress" else ".png").unlink()  # one output is missing
    assert run(command, *inputs, "-m", tmp_path / "none") == 2
    assert "exists" not in (told := capsys.readouterr().err) and "none" in told


def test_a_full_disk_leaves_no_partial_file(pictures, model, tmp_path, capsys, monkeypatch):
    target = tmp_path / "x.egic"
    target.write_bytes(b"mine")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("egic.cli.files.os.fsync", full)
    assert run("compress", pictures / "a.png", "-o", target, "-m", model, "--force") == 2
    assert "No space left" in capsys.readouterr().err
    assert target.read_bytes() == b"mine" and sorted(p.name for p in tmp_path.iterdir()) == ["in", "x.egic"]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: ...")])
def test_too_little_memory_is_one_line(pictures, model, capsys, monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr("egic.model.Model.compress", fail)
    assert run("compress", pictures / "a.png", "-m", model) == 2
    assert "not enough memory" in capsys.readouterr().err


def mistakes(pictures: Path, model: Path) -> list[tuple[tuple, str]]:
    a, mse = pictures / "a.png", model.with_name("mse")
    return [
        (("compress", a, "-m", pictures / "nothing"), "no such folder"),
        (("compress", a, "-m", pictures), "not an EGIC model"),
        (("compress", "nothing.png", "-m", model), "No such file"),
        (("compress", a, a, "-m", model), "would both become"),
        (("compress", pictures / "deeper", "-o", "-", "-m", model), "stdout"),
        (("compress", "-", "-", "-m", model), "only once"),
        (("compress", a, "-m", model, "--device", "cuda:99"), "--device"),
        (("compress", a, "-m", model, "--device", "bananas"), "--device"),
        (("compress", a, "-m", model, "--threads", "0"), "--threads"),
        (("compress", a, "-m", model, "--quality", "50"), "one rate only, so --quality has no meaning"),
        (("compress", a, "-m", model, "--bpp", "0.2"), "one rate only, so --bpp has no meaning"),
        (("compress", a, "-m", model, "--max-bytes", "20k"), "one rate only, so --max-bytes has no meaning"),
        (("compress", a, "-m", pictures / "none", "--quality", "101"), "--quality must lie in 0..100"),
        (("compress", a, "-m", pictures / "none", "--bpp", "-1"), "--bpp must be a positive number"),
        (("compress", a, "-m", pictures / "none", "--max-bytes", "much"), "'much' is not a file size"),
        (("compress", "--max-bytes", "30", "kB", a), "write --max-bytes 30kB"),
        (("compress", a, "--max-bytes", "30", "kB"), "write --max-bytes 30kB"),
        (("compress", a, "-m", model, "--bpp", "0.2", "--quality", "4"), "not allowed with"),
        (("compress", a, "-m", model.with_name("rates"), "--max-bytes", "10"), "at least"),
        (("decompress", a, "-m", model, "-o", "x.exe"), "cannot write"),
        (("decompress", a, "-m", model, "-o", pictures / "x.png"), "not an .egic file"),
        (("decompress", a, "-o", "x.png", "-m", model, "--alpha", "1.5"), "alpha"),
        (("decompress", a, "-o", "x.png", "-m", model, "--alpha", "much"), "alpha"),
        (("decompress", a, "-o", "x.png", "-m", mse, "--alpha", "0.5"), "no ORP"),
        (("info", a), "not an .egic file"),
        (("models", pictures / "nothing"), "is not a folder"),
        (("models", pictures), "no EGIC model in or below"),
        (("conquer",), "invalid choice"),
        ((), "required"),
    ]  # fmt: skip


def test_an_input_of_the_other_command_is_named(pictures, model, tmp_path, capsys):
    """Also where the output exists, which is not the mistake."""
    photo = Image.open(pictures / "a.png").convert("RGB")
    photo.save(tmp_path / "photo.jpg")
    photo.save(tmp_path / "photo.png")
    assert run("decompress", tmp_path / "photo.jpg", "-m", model) == 2
    assert "photo.jpg: not an .egic file; egic compress makes one of a picture" in capsys.readouterr().err
    assert run("compress", tmp_path / "photo.png", "-o", tmp_path / "a.egic", "-m", model) == 0
    assert run("compress", tmp_path / "a.egic", "-o", tmp_path / "b.egic", "-m", model) == 2
    assert "a.egic: an .egic file already; egic decompress makes a picture of it" in capsys.readouterr().err
    assert run("compress", tmp_path / "a.egic", "-m", model) == 2
    assert "a.egic ends as the output would" in capsys.readouterr().err


@pytest.mark.parametrize("number", range(29))
def test_mistakes_end_with_one_line_and_status_2(number, pictures, model, capsys):
    arguments, word = mistakes(pictures, model)[number]
    assert run(*arguments) == 2
    err = capsys.readouterr().err
    assert word in err and err.count("\n") == 1 and "error: " in err, err


def test_models_lists_folders(model, capsys):
    assert run("models", model.parent) == 0
    out = capsys.readouterr().out
    assert f"orp  codec + ORP, model identity {load(model).identity.hex()}" in out and out.count("\n") == 3


def test_mlflow_uris_are_resolved_by_the_pipelines_extension(pictures, model, monkeypatch, tmp_path):
    asked = []
    fetch = {"fetch": lambda ref: asked.append(ref) or model}
    monkeypatch.setattr("egic.cli.model_refs.extension", lambda name, what: fetch[name])
    ref = "models:/egic-orp@best"
    assert run("compress", pictures / "a.png", "-o", tmp_path / "x.egic", "-m", ref) == 0
    assert asked == [ref]


@pytest.mark.slow
@pytest.mark.parametrize("size", [(17, 333), (500, 375)])
def test_full_size_files_decode_in_another_process(golden, tmp_path, size):
    full = full_model(golden)
    artifact.save(tmp_path / "model", {"codec": full.codec}, {})
    x = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    (tmp_path / "x.egic").write_bytes(full.compress(x))
    done = egic("decompress", tmp_path / "x.egic", "-m", tmp_path / "model")
    assert done.returncode == 0, done.stderr
    assert np.asarray(Image.open(tmp_path / "x.png")).shape == x.shape
