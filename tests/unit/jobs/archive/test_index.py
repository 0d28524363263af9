"""The index: rows are written in parts and read as names and sums; failed pictures are forgotten."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.archive import index


def rows(*sources: str, error: str | None = None) -> pa.Table:
    good = {} if error else {"height": 40, "width": 60, "size": 100, "bytes": 10}
    files = [{} if error else {"file": f"{s}.egic"} for s in sources]
    found = [{"source": s, "error": error} | good | file for s, file in zip(sources, files, strict=True)]
    return pa.Table.from_pylist(found, schema=index.SCHEMA)


def test_rows_are_written_in_parts_and_at_the_end(tmp_path, monkeypatch):
    place = index.place_of(str(tmp_path))
    with index.Writer(place) as writer:
        writer.add(rows("a"))
        assert not place.names()
        monkeypatch.setattr(index, "FLUSH_S", 0.0)
        writer.add(rows("b"))
        assert len(place.names()) == 1
        with pytest.raises(KeyboardInterrupt), writer:
            monkeypatch.setattr(index, "FLUSH_S", 100.0)
            writer.add(rows("c"))
            raise KeyboardInterrupt
    assert len(place.names()) == 2
    assert sorted(pq.read_table(tmp_path / "index")["source"].to_pylist()) == ["a", "b", "c"]


def test_names_and_sums_are_read_and_failed_pictures_are_forgotten(tmp_path):
    place = index.place_of(str(tmp_path))
    for table in (rows("a", "dir/b"), pa.concat_tables([rows("c"), rows("d", error="damaged")]), rows("e", error="x")):
        with index.Writer(place) as writer:
            writer.add(table)
    found, totals = index.read(place), index.read(place).totals
    assert [name in found.sources for name in ("a", "dir/b", "c", "d", "e", "f", "")] == [True] * 5 + [False] * 2
    names = ("a.egic", "dir/b.egic", "c.egic", "d.egic", "a")
    assert [name in found.files for name in names] == [True] * 3 + [False] * 2
    assert (totals.pictures, totals.failed, totals.size, totals.bytes) == (3, 2, 300, 30)
    index.forget_failed(place)
    found, totals = index.read(place), index.read(place).totals
    assert [name in found.sources for name in ("a", "c", "d", "e")] == [True, True, False, False]
    assert (totals.pictures, totals.failed) == (3, 0) and len(place.names()) == 2


def test_an_archive_without_index_has_no_names(tmp_path):
    found = index.read(index.place_of(str(tmp_path)))
    assert "a" not in found.sources and "a" not in found.files and found.totals == index.Totals()
