"""What is checked before an archive is coded, and the numbers of a run."""

import json

import pyarrow as pa
import pytest

from egic import artifact
from egic.errors import UserError
from jobs.archive import archive as archives
from jobs.archive import index
from jobs.archive.coder import Work
from jobs.archive.index import SCHEMA
from tests.codec_models import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of one rate without ORP."""
    folder = tmp_path_factory.mktemp("model")
    artifact.save(folder, {"codec": tiny_model().codec}, {})
    return folder


def work(output, command="compress", **options) -> Work:
    return Work(command=command, options=options, output=str(output))


def test_an_archive_is_continued_with_the_same_options_only(tmp_path, model):
    archives.check_output(work(tmp_path / "out", quality=40), model)
    first = archives.settings(work(tmp_path / "out", quality=40), model)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "archive.json").write_text(json.dumps(first))
    archives.check_output(work(tmp_path / "out", quality=40), model)
    for other, what in (
        (work(tmp_path / "out", quality=50), "another quality"),
        (work(tmp_path / "out", bpp=0.5), "another bpp and quality"),
        (work(tmp_path / "out", "decompress", quality=40), "another command"),
    ):
        with pytest.raises(UserError, match=what):
            archives.check_output(other, model)


@pytest.mark.parametrize("name", ["photo.png", "deep/photo.png"])
def test_a_folder_with_other_files_is_refused(tmp_path, model, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(UserError, match="has files, and is no archive"):
        archives.check_output(work(tmp_path), model)
    assert not (tmp_path / "archive.json").exists()


def test_pictures_of_formats_that_are_not_read_are_counted(tmp_path, model, caplog):
    for name in ("in/a.cr2", "in/deep/b.CR2", "in/c.dng", "in/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    archive = archives.Archive(inputs=(str(tmp_path / "in"),), work=work(tmp_path / "out"), model=None, workers=0)
    with pytest.raises(UserError, match="no .png, .* files in"):
        archives.code_missing(archive, model)
    assert "formats cannot be read: 2 .cr2, 1 .dng" in caplog.text


def test_options_without_meaning_are_refused(tmp_path, model):
    archives.check_options(work(tmp_path), model)
    archives.check_options(work(tmp_path, "decompress"), model)
    with pytest.raises(UserError, match="one rate only, so --max-bytes has no meaning"):
        archives.check_options(work(tmp_path, max_bytes=100), model)
    with pytest.raises(UserError, match="no ORP head"):
        archives.check_options(work(tmp_path, "decompress", alpha=0.5), model)


@pytest.mark.parametrize(
    "workers, cpus, gpus, expected",
    [
        (0, 8, 0, (8, None)),
        (3, 8, 0, (3, None)),
        (0, 16, 2, (8, 1 / 4)),
        (0, 2, 8, (2, 1.0)),  # fewer cores than GPUs
        (3, 16, 2, (3, 1 / 2)),  # not 2/3, of which a GPU serves one
    ],
)
def test_workers_share_cores_and_gpus(workers, cpus, gpus, expected):
    assert archives.shares(workers, cpus, gpus) == expected


@pytest.mark.parametrize("places, workers, text", [(("out",), 0, "at least one IN"), (("in", "out"), -1, "--workers")])
def test_wrong_command_lines_are_refused(places, workers, text):
    with pytest.raises(UserError, match=text):
        archives.archive_of("compress", places, {}, None, workers)


def test_an_archive_without_pictures_is_an_error(tmp_path, model):
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="no .png.* files in .*in$"):
        archives.run(archives.archive_of("compress", (f"{tmp_path}/in", f"{tmp_path}/out"), {}, str(model), 0))
    assert not (tmp_path / "out" / "archive.json").exists()  # other options may follow


def test_no_output_replaces_that_of_another_picture(tmp_path):
    """a.png was coded and removed, and a.jpg came; the outputs themselves, below the inputs, are no inputs."""
    (tmp_path / "out").mkdir()
    for name in ("a.jpg", "b.png", "out/c.png"):
        (tmp_path / name).touch()
    rows = [{"source": "a.png", "file": "a.egic"}, {"source": "d.png", "file": "d.egic"}]
    with index.Writer(index.place_of(str(tmp_path / "out"))) as writer:
        writer.add(pa.Table.from_pylist(rows, schema=SCHEMA))
    archive = archives.archive_of("compress", (str(tmp_path), str(tmp_path / "out")), {}, None, 0)
    found = archive.missing(index.read(index.place_of(archive.work.output)))
    assert {p.source: p.target for p in found} == {"a.jpg": "a.jpg.egic", "b.png": "b.egic"}


def test_the_rate_and_the_time_left_leave_out_the_start_of_the_workers(monkeypatch, caplog):
    """Ten pictures after 100 s, then 20 in 10 s: 2 pictures/s, and 7,170 pictures are left."""
    clock = [0.0]
    monkeypatch.setattr(archives.time, "monotonic", lambda: clock[0])
    progress = archives.Progress(num=7200, began=0.0, logged=0.0)
    for clock[0], num in ((100.0, 10), (110.0, 20)):
        rows = [{"source": str(i), "size": 1, "bytes": 1, "error": "damaged" if i == 0 else None} for i in range(num)]
        with caplog.at_level("INFO"):
            progress.add(pa.Table.from_pylist(rows, schema=SCHEMA))
    assert "0: damaged" in caplog.text
    assert caplog.messages[-1] == "30 of 7200 pictures, 2.00 pictures/s, 0:59:45 left"
    assert archives.summary(progress.totals, progress).endswith("this run: 30 in 110.0 s, 0.27 pictures/s")
