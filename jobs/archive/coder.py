"""Worker of an archive: an actor of Ray Data that codes chunks of pictures, one picture at a time."""

import hashlib
import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, cast

import pyarrow as pa
import ray

from egic import pictures
from egic.coding import bitstream
from egic.coding.bitstream import BitstreamError
from egic.errors import UserError, reason
from egic.file_size import bpp
from jobs.archive.index import SCHEMA
from jobs.archive.listing import Picture, identity, unpacked
from jobs.storage import files

if TYPE_CHECKING:
    from egic.model import Model

log = logging.getLogger(__name__)

NUM_ATTEMPTS = 3
LOST = f"its worker died in each of {NUM_ATTEMPTS} attempts, perhaps for lack of memory; use fewer --workers"


Command = Literal["compress", "decompress"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is done with every picture."""

    command: Command
    options: dict[str, Any]
    """Keyword arguments of `Model.compress` or `Model.decompress`."""
    output: str

    def __call__(self, model: "Model", picture: Picture) -> dict[str, Any]:
        """Make the output of a picture, unless a killed run has made it; returns its row."""
        target = files.join(self.output, *PurePosixPath(picture.target).parts)
        existing = files.read(target) if files.exists(target) else None
        if self.command == "compress":
            egic, notes, seconds = self._compressed(model, picture, existing)
            made = egic
        else:
            egic = files.read(_source(picture))
            made, seconds = self._decompressed(model, egic, existing)
            notes = []
        if made is not existing:
            files.write(target, made)
        header = bitstream.unpack(egic)[0]
        return {
            "file": pictures.printable(picture.target), "height": header.height, "width": header.width,
            "size": picture.size, "bytes": len(made), "bpp": bpp(len(egic), header.height, header.width),
            "quality": header.quality, "seconds": seconds, "model": header.model_id.hex(),
            "sha256": hashlib.sha256(made).hexdigest(), "notes": "; ".join(notes) or None,
        }  # fmt: skip

    def _compressed(
        self, model: "Model", picture: Picture, existing: bytes | None
    ) -> tuple[bytes, list[str], float | None]:
        """The bytes of the .egic file, warnings, and seconds of work."""
        if existing is not None:
            try:
                bitstream.unpack(existing)
                return existing, [], None
            except BitstreamError:  # the machine stopped before the file was on the disk
                pass
        image, notes = pictures.read(files.read(_source(picture)))
        start = time.perf_counter()
        return model.compress(image, **self.options), notes, time.perf_counter() - start

    def _decompressed(self, model: "Model", egic: bytes, existing: bytes | None) -> tuple[bytes, float | None]:
        """The bytes of the picture file, and seconds of work."""
        if existing is not None:
            try:
                pictures.read(existing)
                return existing, None
            except UserError:
                pass
        start = time.perf_counter()
        image = model.decompress(egic, **self.options)
        return pictures.write(image), time.perf_counter() - start


def _source(picture: Picture) -> str:
    return files.join(picture.folder, *PurePosixPath(picture.source).parts)


class Coder:
    """The work with a model on one thread or one GPU, as a callable class for `Dataset.map_batches`.

    A picture that cannot be coded is a row with the error; no exception leaves a call.
    """

    def __init__(self, model: ray.ObjectRef, attempts: ray.actor.ActorHandle, work: Work, gpu: bool):
        import torch

        from egic.model import load

        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            for name, content in ray.get(model).items():
                Path(folder, name).write_bytes(content)
            self.model = load(folder, "cuda" if gpu else "cpu")
        self.attempts, self.work = attempts, work

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = [self.row(picture) for chunk in batch["chunk"].to_pylist() for picture in unpacked(chunk)]
        return pa.Table.from_pylist(rows, schema=SCHEMA)

    def row(self, picture: Picture) -> dict[str, Any]:
        """The picture's row for the index."""
        row: dict[str, Any] = {"source": identity(picture), "size": picture.size}
        if self._earlier_attempts(row["source"]) >= NUM_ATTEMPTS:
            return row | {"error": LOST}
        try:
            row |= self.work(self.model, picture)
        except (UserError, OSError, MemoryError) as error:
            row["error"] = reason(error) or type(error).__name__
        except Exception as error:  # a fault of the program, or no memory on the GPU
            log.exception("%s", row["source"])
            row["error"] = f"{type(error).__name__}: {reason(error)}"
        self.attempts.end.remote(row["source"])
        return row

    def _earlier_attempts(self, source: str) -> int:
        return int(cast(Any, ray.get(self.attempts.begin.remote(source))))
