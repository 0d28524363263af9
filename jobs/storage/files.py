"""Storage for data, checkpoints and results: a local (or NFS) folder, s3://bucket/folder or gs://bucket/folder.

A place is a string or a Path. A URI takes the options of pyarrow's file systems after a `?`, such as
s3://bucket/folder?region=eu-central-1&endpoint_override=http://minio:9000. Credentials come from the environment or the
machine, as for all AWS and Google tools, never from the URI. Writes are atomic: a reader sees the whole file or none.
Object stores guarantee this; local files are written under a temporary name and renamed.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import pyarrow as pa
from pyarrow import fs
from tenacity import (
    Retrying,
    retry_if_exception_type,
    retry_if_not_exception_type,
    stop_after_attempt,
    wait_chain,
    wait_fixed,
)

from egic.cache import cache_folder
from egic.errors import UserError

Place = str | Path
SCHEMES = ("s3", "gs")
PROBE_S = 20
"""Time limit of `check`; pyarrow itself waits for minutes."""
patiently = Retrying(
    retry=retry_if_exception_type(OSError) & retry_if_not_exception_type(FileNotFoundError),
    wait=wait_chain(wait_fixed(1), wait_fixed(4), wait_fixed(16)), stop=stop_after_attempt(4), reraise=True,
)  # fmt: skip
"""Calls a function, and repeats the call after network and server errors, in addition to pyarrow's own retries."""


def is_remote(place: Place) -> bool:
    """Whether a place is a URI; everything else is a path on this machine."""
    return "://" in os.fspath(place)


def check_spelling(name: str, place: Place) -> None:
    """Raise UserError when `place` is not a valid URI of a supported scheme; sends no network request."""
    if not re.match(r"\w[\w+.-]*:/", os.fspath(place)):
        return
    parts = urlsplit(os.fspath(place))
    if parts.scheme not in SCHEMES or not is_remote(place):  # pathlib would make a folder `s3:` of s3:/bucket
        raise UserError(f"{name} is {place}; give a local folder, s3://bucket/folder or gs://bucket/folder")
    user, _, bucket = parts.netloc.rpartition("@")
    if user and (parts.scheme, user) != ("gs", "anonymous"):
        raise UserError(f"{name} holds credentials, which would end up in logs; put them into the environment")
    if not bucket or not parts.path.strip("/"):
        raise UserError(f"{name} is {place}; give {parts.scheme}://bucket/folder, with a bucket and a folder")


def filesystem_and_path(place: Place) -> tuple[fs.FileSystem, str]:
    """pyarrow's file system of a place, and the path in it, as Ray Train takes them. Raises UserError, OSError."""
    if not is_remote(place):
        return fs.LocalFileSystem(), os.path.abspath(place)
    parts = urlsplit(os.fspath(place))
    path = f"{parts.netloc.rpartition('@')[2]}/{unquote(parts.path).strip('/')}".strip("/")
    return _filesystem(parts.scheme, parts.netloc, parts.query), path


@lru_cache(maxsize=16)
def _filesystem(scheme: str, netloc: str, options: str) -> fs.FileSystem:
    try:
        return fs.FileSystem.from_uri(f"{scheme}://{netloc}/?{options}")[0]
    except pa.ArrowInvalid as error:
        raise UserError(f"{scheme}://{netloc}?{options} is not valid storage: {error}") from error


def join(place: Place, *names: str) -> str:
    """The place of a file or folder below `place`."""
    if not is_remote(place):
        return os.path.join(place, *names)
    head, mark, options = os.fspath(place).partition("?")
    return "/".join([head.rstrip("/"), *map(quote, names)]) + mark + options


def suffixed(place: Place, suffix: str) -> str:
    """The place of a file whose name has `suffix` appended; a URI's options stay at its end."""
    head, mark, options = os.fspath(place).partition("?") if is_remote(place) else (os.fspath(place), "", "")
    return head + suffix + mark + options


def split(place: Place) -> tuple[str, str]:
    """The folder of a file, and the file's name; the inverse of `join`."""
    if not is_remote(place):
        return os.path.split(place)
    head, mark, options = os.fspath(place).partition("?")
    folder, _, name = head.rpartition("/")
    return folder + mark + options, unquote(name)


def absolute(place: Place) -> str:
    """A place that does not depend on the working folder."""
    return os.fspath(place) if is_remote(place) else os.path.abspath(place)


def exists(place: Place) -> bool:
    """Whether a file or folder exists; cheaper than reading it."""
    filesystem, path = filesystem_and_path(place)
    return patiently(filesystem.get_file_info, path).type != fs.FileType.NotFound


def is_folder(place: Place) -> bool:
    """Whether a folder exists."""
    if not is_remote(place):
        return os.path.isdir(place)
    filesystem, path = filesystem_and_path(place)
    return patiently(filesystem.get_file_info, path).type == fs.FileType.Directory


def size(place: Place) -> int:
    """Size of a file in bytes. Raises FileNotFoundError."""
    if not is_remote(place):
        return os.path.getsize(place)
    filesystem, path = filesystem_and_path(place)
    info = patiently(filesystem.get_file_info, path)
    if info.type != fs.FileType.File:
        raise FileNotFoundError(f"{place} does not exist")
    return info.size


def list_folder(folder: Place) -> tuple[dict[str, int], list[str]]:
    """Size in bytes of each file in a folder by its name, and the names of the folders in it; nothing if it does not
    exist. Links to folders are left out, since they can form circles."""
    if is_remote(folder):
        filesystem, root = filesystem_and_path(folder)
        found = patiently(filesystem.get_file_info, fs.FileSelector(root, allow_not_found=True))
        folders = [info.base_name for info in found if info.type == fs.FileType.Directory]
        return {info.base_name: info.size for info in found if info.type == fs.FileType.File}, folders
    if not os.path.isdir(folder):
        return {}, []
    with os.scandir(folder) as entries:
        listed = list(entries)
    folders = [entry.name for entry in listed if entry.is_dir(follow_symlinks=False)]
    return {entry.name: entry.stat().st_size for entry in listed if entry.is_file()}, folders


def sizes(folder: Place) -> dict[str, int]:
    """Size in bytes of every file below a folder, by the path relative to it; empty when the folder does not exist."""
    filesystem, root = filesystem_and_path(folder)
    found = filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True, recursive=True))
    return {info.path[len(root) :].lstrip("/"): info.size for info in found if info.type == fs.FileType.File}


def read(place: Place) -> bytes:
    """A file's content. Raises FileNotFoundError, OSError."""
    if not is_remote(place):
        return Path(place).read_bytes()
    return patiently(_read, place)


def _read(place: Place) -> bytes:
    filesystem, path = filesystem_and_path(place)
    with filesystem.open_input_stream(path) as file:
        return file.read()


def read_ranges(place: Place, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes at each (offset, size) of a file; fewer at the file's end. Raises FileNotFoundError, OSError."""
    if not is_remote(place):
        with open(place, "rb", buffering=0) as file:
            return [os.pread(file.fileno(), size, offset) for offset, size in ranges]
    return patiently(lambda: [_opened(place).read_at(size, offset) for offset, size in ranges])


@lru_cache(maxsize=4096)
def _opened(place: Place) -> pa.NativeFile:
    """A remote file for random access, cached: opening takes a request, and an open file holds no connection."""
    filesystem, path = filesystem_and_path(place)
    return filesystem.open_input_file(path)


def write(place: Place, content: bytes) -> None:
    """Write a file atomically; an existing one is replaced."""
    if is_remote(place):
        filesystem, name = filesystem_and_path(place)
        return patiently(_write, filesystem, name, content)
    path = Path(place)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # a process id is not unique among machines
    aside.write_bytes(content)
    aside.rename(path)


def _write(filesystem: fs.FileSystem, path: str, content: bytes) -> None:
    with filesystem.open_output_stream(path) as file:
        file.write(content)


def remove(place: Place) -> None:
    """Remove a file, if it exists."""
    filesystem, path = filesystem_and_path(place)
    try:
        filesystem.delete_file(path)
    except FileNotFoundError:
        pass


@dataclass(frozen=True)
class Folder:
    """A folder, with functions for the small files in it."""

    place: str
    """An absolute path or a URI, since it is sent to other machines as well."""

    @property
    def filesystem(self) -> fs.FileSystem:
        return filesystem_and_path(self.place)[0]

    @property
    def path(self) -> str:
        """The folder's path in `filesystem`."""
        return filesystem_and_path(self.place)[1]

    def read(self, name: str) -> bytes | None:
        """Content of a file; None when it does not exist."""
        try:
            return read(join(self.place, name))
        except FileNotFoundError:
            return None

    def exists(self, name: str) -> bool:
        return exists(join(self.place, name))

    def write(self, name: str, content: bytes) -> None:
        write(join(self.place, name), content)

    def remove(self, name: str) -> None:
        remove(join(self.place, name))

    def names(self, kind: fs.FileType = fs.FileType.File) -> list[str]:
        """Names of the files (or folders) in the folder, sorted."""
        found = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == kind)


def file_sha256(path: Path) -> str:
    """sha256 of a local file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def filled(folder: Place, last: str) -> Iterator[Path]:
    """A local folder to write results to. For a remote `folder`, its files are uploaded at the end, `last` as the last
    one."""
    if not is_remote(folder):
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory() as aside:
        yield Path(aside)
        files = sorted(p for p in Path(aside).rglob("*") if p.is_file())
        for file in sorted(files, key=lambda p: p == Path(aside, last)):
            write(join(folder, *file.relative_to(aside).parts), file.read_bytes())


@contextmanager
def fetched(folder: Place) -> Iterator[Path]:
    """The folder itself, or a local copy of a remote one; empty when that does not exist."""
    if not is_remote(folder):
        yield Path(folder)
        return
    filesystem, path = filesystem_and_path(folder)
    with tempfile.TemporaryDirectory() as here:
        if filesystem.get_file_info(path).type == fs.FileType.Directory:
            fs.copy_files(path, here, source_filesystem=filesystem, destination_filesystem=fs.LocalFileSystem())
        yield Path(here)


def working_folder(output: Place) -> Path:
    """Folder for local copies: a local output itself, else this machine's cache."""
    if not is_remote(output):
        return Path(output)
    return cache_folder()


def check(place: Place, *, writable: bool) -> None:
    """Raise UserError or OSError when a place cannot be read, or written to, within PROBE_S seconds.

    The check runs in a process of its own: pyarrow waits for minutes for a server that does not answer, and its calls
    cannot be interrupted.
    """
    if not is_remote(place):
        if writable:
            Path(place).mkdir(parents=True, exist_ok=True)
        return
    command = [sys.executable, "-m", "jobs.storage.files", os.fspath(place), *(["writable"] if writable else [])]
    hint = (
        "check the bucket's name, the credentials (environment variables or the machine's role) and endpoint_override"
    )
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_S)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{place} does not answer within {PROBE_S} s; {hint}") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no error message"])[-1]
        raise UserError(f"{place} cannot be {'written to' if writable else 'read'}: {reason}; {hint}")


def _probe(place: str, *, writable: bool) -> None:
    filesystem, path = filesystem_and_path(place)
    if writable:
        mark = f"{path}/.egic-{uuid.uuid4().hex}"
        _write(filesystem, mark, b"")
        filesystem.delete_file(mark)
    elif filesystem.get_file_info(path).type == fs.FileType.NotFound:
        raise OSError("the bucket or the folder does not exist")


if __name__ == "__main__":
    try:
        _probe(sys.argv[1], writable="writable" in sys.argv[2:])
    except (UserError, OSError) as failure:
        print(" ".join(str(failure).split()), file=sys.stderr)
        sys.exit(2)
