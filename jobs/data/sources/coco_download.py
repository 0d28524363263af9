"""Download the official COCO 2017 archives: resumed, checked, and unpacked to a temporary folder that is then renamed.

The three archives are pinned by size and sha256 (digests published by TensorFlow Datasets; COCO's server offers none),
so plain http is safe. Of an archive without a pinned digest the zip CRCs are tested, and its sha256 is written next to
it, so that a different file is detected by a later download.
"""

from __future__ import annotations

import http.client
import logging
import shutil
import stat
import sys
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from egic.errors import UserError
from jobs.storage.files import file_sha256

log = logging.getLogger(__name__)
TIMEOUT_S = 60
CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Archive:
    """One zip on the server, and the files that we need from it."""

    path: str
    """Below the base URL."""
    targets: tuple[str, ...]
    """Files and folders that it creates below the COCO root; when they exist, the archive is not downloaded."""
    size: int | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


def _annotations(split: str) -> tuple[str, str]:
    return f"annotations/panoptic_{split}2017.json", f"annotations/panoptic_{split}2017"


ARCHIVES = (
    Archive(
        path="annotations/panoptic_annotations_trainval2017.zip",
        targets=(*_annotations("train"), *_annotations("val")),
        size=860_725_834,
        sha256="c05f76d2129b6b561eb70efe16e7006df62f73fb92889132d373b9d90e31a370",
    ),
    Archive(
        path="zips/val2017.zip",
        targets=("val2017",),
        size=815_585_330,
        sha256="4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
    ),
    Archive(
        path="zips/train2017.zip",
        targets=("train2017",),
        size=19_336_861_798,
        sha256="69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
    ),
)


def download_coco(
    root: str | Path,
    *,
    base_url: str = "http://images.cocodataset.org",
    splits: Sequence[str] = ("train", "val"),
    archives: Sequence[Archive] = ARCHIVES,
    num_attempts: int = 5,
    wait_s: float = 2.0,
) -> None:
    """Make `root` a COCO tree; existing parts are not downloaded again. Archives are removed after unpacking.

    Raises UserError when the server cannot be reached, an archive is damaged, or the disk is too small.
    """
    root = Path(root)
    work = root / ".download"
    for archive in archives:
        if not any(f"{split}2017" in target for split in splits for target in archive.targets):
            continue
        if all((root / target).exists() for target in archive.targets):
            log.info("%s: already unpacked", archive.name)
            continue
        work.mkdir(parents=True, exist_ok=True)
        file = work / archive.name
        if not file.exists():
            url = f"{base_url.rstrip('/')}/{archive.path}"
            part = fetch(url, file, size=archive.size, num_attempts=num_attempts, wait_s=wait_s)
            _verify(part, archive, work / f"{archive.name}.sha256")
            part.rename(file)
        aside = work / file.stem
        shutil.rmtree(aside, ignore_errors=True)
        unpack(file, aside)
        for target in archive.targets:
            if not (aside / target).exists():
                raise UserError(f"{file} does not contain {target}; it is not the expected archive")
            (root / target).parent.mkdir(exist_ok=True)
            if not (root / target).exists():
                (aside / target).rename(root / target)
        shutil.rmtree(aside)
        file.unlink()


def fetch(url: str, file: Path, *, size: int | None = None, num_attempts: int = 5, wait_s: float = 2.0) -> Path:
    """Download `url` to `file`.part and return that path; an interrupted transfer is resumed.

    Only consecutive attempts without a new byte count against `num_attempts`.
    """
    part = file.with_name(file.name + ".part")
    failures = 0
    while True:
        have = part.stat().st_size if part.exists() else 0
        try:
            total = _transfer(url, part, have, size)
            if part.stat().st_size == total:
                return part
            reason: object = "the transfer was interrupted"
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise UserError(f"{url}: the server answers {error.code} {error.reason}{_elsewhere(file)}") from error
            reason = error
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = getattr(error, "reason", error)
        got = (part.stat().st_size if part.exists() else 0) - have
        failures = 0 if got > 0 else failures + 1
        if failures >= num_attempts:
            raise UserError(f"cannot download {url} ({reason}){_elsewhere(file)}")
        log.warning("%s: %s; continuing at byte %d", file.name, reason, have + max(got, 0))
        time.sleep(wait_s * 2 ** max(failures - 1, 0))


def _elsewhere(file: Path) -> str:
    root = file.parent.parent
    return f"; without that server, unpack the COCO 2017 archives into {root} yourself and omit --download"


def _transfer(url: str, part: Path, have: int, size: int | None) -> int:
    """Append the missing bytes to `part` (all of them, if the server ignores Range); returns the total size."""
    if size is not None and have >= size:
        if have > size:
            part.unlink()
            raise ConnectionError("the partial file is longer than the archive, starting again")
        return size
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{have}":
            return have  # nothing is missing
        raise
    with response:
        resumed = response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise ConnectionError("the server sent another range than requested")
        start = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None else size
        if total is None:
            raise UserError(f"{url}: the server does not send the archive's size")
        if size is not None and total != size:
            raise UserError(f"{url} has {total} bytes instead of {size}; it is not the official archive")
        _need_space(part.parent, total - start)
        _copy(response, part, start, total)
    return total


def _copy(response: http.client.HTTPResponse, part: Path, start: int, total: int) -> None:
    """Write the response from byte `start` on, with a progress line on stderr every second."""
    began = shown = time.monotonic()
    done = start
    with part.open("ab" if start else "wb") as out:
        while data := response.read(CHUNK):
            out.write(data)
            done += len(data)
            now = time.monotonic()
            if now - shown > 1 or done == total:
                shown, rate = now, (done - start) / max(now - began, 1e-3)
                left = f", {(total - done) / rate / 60:.0f} min left" if done < total else "\n"
                print(f"\r{part.stem}: {done / 1e6:.0f} of {total / 1e6:.0f} MB, {rate / 1e6:.1f} MB/s{left}",
                      end="", file=sys.stderr, flush=True)  # fmt: skip


def _verify(part: Path, archive: Archive, sidecar: Path) -> None:
    """Compare with the pinned or recorded sha256; a damaged file is removed, for the next run to download it again."""
    found = file_sha256(part)
    expected = archive.sha256 or (sidecar.read_text().strip() if sidecar.exists() else None)
    problem = f"sha256 is {found} instead of {expected}" if expected and found != expected else None
    if expected is None:
        try:
            with zipfile.ZipFile(part) as content:
                broken = content.testzip()
            problem = f"{broken} fails its CRC" if broken else None
        except (zipfile.BadZipFile, zlib.error) as error:
            problem = str(error)
    if problem:
        part.unlink()
        raise UserError(f"{archive.name} is damaged ({problem}) and was removed; run again to download it")
    if not archive.sha256:
        sidecar.write_text(found + "\n")


def unpack(file: Path, folder: Path) -> None:
    """Unpack a zip, and zips inside it beside themselves; refuses links, and paths that leave the folder."""
    try:
        with zipfile.ZipFile(file) as content:
            members = content.infolist()
            for member in members:
                parts = PurePosixPath(member.filename).parts
                if not parts or parts[0] == "/" or ".." in parts or "\\" in member.filename or ":" in parts[0]:
                    raise UserError(f"{file} holds {member.filename!r}, which is outside its folder; not unpacked")
                if stat.S_ISLNK(member.external_attr >> 16):
                    raise UserError(f"{file} holds a link ({member.filename!r}); not unpacked")
            _need_space(file.parent, sum(member.file_size for member in members))
            log.info("%s: unpacking %d files", file.name, len(members))
            for member in members:
                content.extract(member, folder)
    except (zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{file} is damaged ({error}); remove it and run again") from error
    for inner in (folder / member.filename for member in members if member.filename.endswith(".zip")):
        unpack(inner, inner.parent)
        inner.unlink()


def _need_space(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise UserError(f"{folder}: {num_bytes / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free; make room")
