"""Local folders and a local S3 server: the same functions and data, and errors are one line."""

import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from pyarrow import fs
from tenacity import wait_none

from egic.errors import run_main
from jobs.config.presets import tiny
from jobs.config.schema import Config
from jobs.data import preparation
from jobs.data.datasets import open_data
from jobs.data.preparation import PrepareConfig, prepare
from jobs.data.shards import load_manifest, read_index, read_samples
from jobs.data.sources.scenes.scenes import SceneConfig, write_scenes
from jobs.evaluate import FoldersConfig, run_alone
from jobs.evaluation.listing import Picture
from jobs.evaluation.parts import Parts, Task, read, read_features, write_features
from jobs.prepare import main as prepare_main
from jobs.storage import files as storage
from jobs.storage import lease
from pipelines import full
from tests.fake_s3 import BUCKET, place_on, s3_server


@pytest.fixture(scope="module")
def server():
    with pytest.MonkeyPatch.context() as patch, s3_server(patch) as address:
        yield address


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path):
    """An empty folder, on disk or on the server."""
    if request.param == "local":
        return str(tmp_path / "place")
    return place_on(request.getfixturevalue("server"), f"unit/{tmp_path.name}")


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("coco"), SceneConfig(num_train=5, num_val=2, min_side=64, max_side=96))


def files(folder: str) -> set[str]:
    return {name for name in storage.sizes(folder) if not name.startswith(".")}


def test_files_are_written_listed_read_and_removed(place):
    name = storage.join(place, "deep er", "50% of #1?.bin")
    content = np.random.default_rng(0).bytes(
        23_000_000 if storage.is_remote(place) else 1000
    )  # three parts of an upload
    assert not storage.exists(name) and storage.sizes(place) == {}
    storage.write(name, b"before")
    storage.write(name, content)
    assert storage.exists(name) and storage.read(name) == content
    assert storage.sizes(place) == {"deep er/50% of #1?.bin": len(content)}
    assert storage.split(name) == (storage.join(place, "deep er"), "50% of #1?.bin")
    assert storage.read_ranges(name, [(10, 5), (0, 3)]) == [content[10:15], content[:3]]
    assert storage.read_ranges(name, [(len(content) - 2, 9)]) == [content[-2:]]
    storage.remove(name)
    assert not storage.exists(name) and storage.sizes(place) == {}
    storage.remove(name)
    with pytest.raises(FileNotFoundError):
        storage.read(name)


def test_folders_are_written_with_their_last_file_last(place, monkeypatch):
    with pytest.raises(RuntimeError), storage.filled(place, last="summary.json") as here:
        raise RuntimeError
    assert files(place) == set()
    order, write = [], storage.write
    monkeypatch.setattr(storage, "write", lambda to, content: (order.append(storage.split(to)[1]), write(to, content)))
    with storage.filled(place, last="summary.json") as here:
        for name in ("summary.json", "rows", "sub/z"):
            write(here / name, name.encode())
    assert files(place) == {"summary.json", "rows", "sub/z"}
    assert order[-1:] == (["summary.json"] if storage.is_remote(place) else [])
    with storage.fetched(place) as here:
        assert (here / "sub" / "z").read_bytes() == b"sub/z"
    with storage.fetched(storage.join(place, "nothing")) as here:
        assert not here.exists() or not list(here.iterdir())


def test_prepared_data_is_the_same_in_every_storage(tree, place, tmp_path):
    local = load_manifest(prepare((tree,), str(tmp_path / "plain"), PrepareConfig(split="train"))["train"])
    found = load_manifest(prepare((tree,), place, PrepareConfig(samples_per_shard=2))["train"], check_shards=True)
    assert found.digest == local.digest and len(found.shards) == 3
    for one, other in zip(read_samples(found, range(5)), read_samples(local, range(5)), strict=True):
        assert one.jpeg == other.jpeg and np.array_equal(one.segments, other.segments)
        assert np.array_equal(one.segment_class, other.segment_class)
    assert open_data(place, tmp_path)["train"] == found
    assert storage.split(read_index(found).name_and_shard(found, 0)[1])[0] == storage.join(place, "train")


def test_unchanged_input_is_reused_and_changed_input_replaces_it(tree, place, monkeypatch):
    written, write = [], storage.write
    monkeypatch.setattr(
        storage, "write", lambda to, content: (written.append(storage.split(to)[1]), write(to, content))
    )
    config = PrepareConfig(split="train", samples_per_shard=2)
    manifest = prepare((tree,), place, config)["train"]
    if storage.is_remote(place):
        assert [name for name in written if name != lease.NAME][-2:] == ["index.parquet", "manifest.json"]
        assert len(set(written)) == 6  # three shards and the lease
    written.clear()
    assert prepare((tree,), place, config)["train"] == manifest and not written
    larger = PrepareConfig(split="train", samples_per_shard=4)
    prepare((tree,), place, larger)
    names = {"shard-00000.parquet", "shard-00001.parquet", "index.parquet", "manifest.json"}
    assert files(storage.join(place, "train")) == names  # the earlier third shard is removed
    storage.remove(manifest)  # as after a failed upload: it is not data, and can be prepared again
    with pytest.raises(ValueError, match="manifest.json.* does not exist"):
        load_manifest(manifest)
    prepare((tree,), place, larger)
    storage.write(storage.join(place, "train", "shard-00001.parquet"), b"cut")
    with pytest.raises(ValueError, match="shard-00001.parquet.* is missing or has another size"):
        load_manifest(manifest)
    prepare((tree,), place, larger)
    assert load_manifest(manifest, check_shards=True).num_samples == 5


def test_two_processes_prepare_the_same_place_once(tree, place, monkeypatch):
    published, publish = [], preparation.write_index
    monkeypatch.setattr(
        preparation, "write_index", lambda folder, parts: (published.append(folder), publish(folder, parts))
    )
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: prepare((tree,), place, PrepareConfig(split="train"))["train"], range(2)))
    assert both[0] == both[1] and load_manifest(both[0], check_shards=True).num_samples == 5
    assert len(published) == 1 and storage.Folder(storage.absolute(place)).read(lease.NAME) is None


def test_a_failed_upload_leaves_no_manifest(tree, server, monkeypatch):
    place = place_on(server, "broken")
    prepare((tree,), place, PrepareConfig(split="train"))
    write = storage.write

    def fails(to, content):
        if storage.split(to)[1] == "shard-00001.parquet":
            raise OSError("the line is dead")
        write(to, content)

    monkeypatch.setattr(storage, "write", fails)
    with pytest.raises(OSError, match="the line is dead"):
        prepare((tree,), place, PrepareConfig(split="train", samples_per_shard=2))
    assert files(storage.join(place, "train")) == {"shard-00000.parquet", "index.parquet"}


def test_a_place_with_other_files_is_not_overwritten(tree, place):
    storage.write(storage.join(place, "train", "thesis.txt"), b"years of work")
    with pytest.raises(ValueError, match="choose another OUT"):
        prepare((tree,), place, PrepareConfig(split="train"))
    assert files(place) == {"train/thesis.txt"}


def test_a_missing_shard_is_named_and_a_network_error_is_not_damage(tree, server, monkeypatch):
    manifest = load_manifest(prepare((tree,), place_on(server, "gone"), PrepareConfig(split="train"))["train"])
    read_index(manifest)
    monkeypatch.setattr(storage.patiently, "wait", wait_none())
    calls = []

    def dead(place):
        calls.append(place)
        raise OSError("AWS Error NETWORK_CONNECTION")

    monkeypatch.setattr(storage, "_opened", dead)
    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        list(read_samples(manifest, [0]))
    assert len(calls) == 4  # retried
    monkeypatch.undo()
    storage.remove(storage.join(manifest.folder, manifest.shards[0]))
    with pytest.raises(ValueError, match="shard-00000.parquet.* is damaged at sample 0"):
        list(read_samples(manifest, [0]))


def test_parts_of_an_evaluation_are_done_when_all_files_exist(place):
    parts, picture = Parts(folder=place), Picture(name="a.png", digest="d" * 64)
    path = parts.model("m" * 64, picture, 50)
    task = Task(labels={"m": "m" * 64}, qualities={"m" * 64: (50,)}, patches=(256,))
    assert read(path) is None and not parts.is_done(task, picture, shown=False)
    storage.write(storage.suffixed(path, ".json"), b'{"bytes": 7, "points": [{"alpha": 0.5}]}')
    assert not parts.is_done(task, picture, shown=False)  # the original's features are missing
    write_features(parts.original(picture), {256: np.arange(3)})
    assert read_features(parts.original(picture), (256,))[256].tolist() == [0, 1, 2]
    assert parts.is_done(task, picture, shown=False) and not parts.is_done(task, picture, shown=True)
    storage.write(storage.suffixed(path, "_alpha_0.5.png"), b"png")
    assert parts.is_done(task, picture, shown=True)


def test_google_storage_reads_its_options_from_the_uri():
    place = "gs://anonymous@bucket/egic/run%201?scheme=http&endpoint_override=127.0.0.1:9"
    storage.check_spelling("output", place)
    filesystem, path = storage.filesystem_and_path(storage.join(place, "checkpoints"))
    assert path == "bucket/egic/run 1/checkpoints"
    options = {"anonymous": True, "scheme": "http", "endpoint_override": "127.0.0.1:9", "default_bucket_location": ""}
    assert filesystem.equals(fs.GcsFileSystem(**options))


@pytest.mark.parametrize(
    "place, message",
    [
        ("http://host/folder", "give a local folder, s3://bucket/folder or gs://bucket/folder"),
        ("s3:/bucket/folder", "give a local folder"),
        ("file:///folder", "give a local folder"),
        ("s3://bucket", "with a bucket and a folder"),
        ("s3:///folder", "with a bucket and a folder"),
        ("s3://KEY:SECRET@bucket/folder", "holds credentials"),
        ("gs://someone@bucket/folder", "holds credentials"),
    ],
)
def test_invalid_uris_are_refused(place, message):
    preset = vars(tiny())
    for make in (
        lambda: Config(**(preset | {"data": place})),
        lambda: Config(**(preset | {"output": place})),
        lambda: prepare((Path(),), place),
        lambda: run_alone(FoldersConfig(output=place)),
    ):
        with pytest.raises(ValueError, match=message) as error:
            make()
        assert "SECRET" not in str(error.value) and "\n" not in str(error.value)


def refuses(writable: bool, place: str) -> str:
    with pytest.raises(ValueError) as error:
        storage.check(place, writable=writable)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_unusable_storage_is_refused_before_work_starts(server, tmp_path, monkeypatch):
    good = place_on(server, "fine")
    storage.check(good, writable=True)
    assert files(good) == set()
    assert "the bucket or the folder does not exist" in refuses(False, place_on(server, "nowhere"))
    missing = good.replace(BUCKET, "missing")
    assert "NO_SUCH_BUCKET" in refuses(True, missing)
    assert "the bucket or the folder does not exist" in refuses(False, missing)
    assert "Unexpected query parameter" in refuses(True, good + "&colour=red")
    storage.write(tmp_path / "file", b"")
    with pytest.raises(OSError):
        storage.check(tmp_path / "file" / "below", writable=True)


def test_refused_access_is_one_line(monkeypatch, server):
    class Refuses(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_error(403)

        do_PUT = do_HEAD = do_GET = do_POST

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as refusing:
        Thread(target=refusing.serve_forever, daemon=True).start()
        place = place_on(f"http://127.0.0.1:{refusing.server_port}", "x")
        assert "ACCESS_DENIED" in refuses(True, place) and "the credentials" in refuses(False, place)
        refusing.shutdown()


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_server_that_never_answers_is_an_error_after_a_timeout(server, monkeypatch, scheme):
    monkeypatch.setattr(storage, "PROBE_S", 3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        options = f"scheme=http&endpoint_override=127.0.0.1:{silent.getsockname()[1]}"
        user = "anonymous@" if scheme == "gs" else ""
        message = refuses(True, f"{scheme}://{user}bucket/x?{options}")
    assert "does not answer within 3 s" in message


def test_the_pipeline_checks_its_storage_before_training(server, tmp_path, monkeypatch, capsys):
    missing = place_on(server, "x").replace(BUCKET, "missing")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr("jobs.cluster.start.start_ray", lambda: pytest.fail("too late"))
    monkeypatch.setattr(sys, "argv", ["jobs.prepare", str(tmp_path), missing])
    for program in (
        lambda: full.start(["tiny", "--output", missing]),
        lambda: full.start(["tiny", "--data", missing]),
        prepare_main,
    ):
        assert run_main(program) == 2
        assert capsys.readouterr().err.strip().splitlines()[-1].startswith(f"error: {missing} cannot be ")
