"""What evaluation does with one picture, and the small files that keep it: a killed run goes on where it was.

    parts/<key>/<model digest>/<picture digest>.json            sizes, times, and the measures at every alpha
    parts/<key>/<model digest>/<picture digest>_alpha_0.5.npy   features of the decoded picture's patches
    parts/<key>/<model digest>/<picture digest>_alpha_0.5.png   the decoded picture, of pictures that are shown
    parts/<key>/original/<picture digest>.npy                   features of the original's patches

Every file appears whole, the .json last: where it is, the picture is finished. `key` covers everything
else that decides the content, so that a run with more pictures or models finds what an earlier one has done.
"""

import hashlib
import io
import json
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from egic import pictures
from egic.errors import UserError
from egic.metrics.fid_kid import Features
from egic.metrics.quality import Quality
from egic.model import Model, as_bytes
from egic.networks.orp import blend
from egic.training.crops import decode_jpeg
from jobs.data.shards import Manifest, read_index, read_samples
from jobs.storage import files as storage

ORIGINAL = "original"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture to code: a file, or a sample of prepared data."""

    name: str
    digest: str
    """Names what it is, in hexadecimal."""
    path: str = ""
    sample: int = -1

    def read(self, manifest: Manifest | None = None) -> np.ndarray:
        """uint8 RGB (H, W, 3). Raises UserError or OSError."""
        if self.path:
            return pictures.read(Path(self.path).read_bytes())[0]
        assert manifest is not None  # which a sample comes from
        return decode_jpeg(next(iter(read_samples(manifest, [self.sample]))).jpeg)


def of_data(manifest: Manifest, limit: int) -> list[Picture]:
    """The first samples of prepared data."""
    index = read_index(manifest)
    return [
        Picture(
            name=index.name_and_shard(manifest, i)[0],
            digest=hashlib.sha256(f"{manifest.digest} {i}".encode()).hexdigest(),
            sample=i,
        )
        for i in range(min(limit, manifest.num_samples))
    ]


def of_folders(places: Sequence[str]) -> tuple[list[Picture], list[dict]]:
    """Picture files in folders (and below) and single files, by name; and those that can't be opened, with the reason.

    A name is the path below the folder, with the folder's own name in front where two would be alike.
    Raises UserError for a place that is not there, for one without pictures, and for names that stay alike.
    """
    found: list[tuple[Path, Path]] = []
    for place in map(Path, places):
        if not place.exists():
            raise UserError(f"--images {place} does not exist; name folders with pictures")
        if place.is_file():
            found.append((place.parent, place))
            continue
        files = [p for p in sorted(place.rglob("*")) if p.suffix.lower() in pictures.READ_SUFFIXES and p.is_file()]
        found += [(place, p) for p in files if not p.name.startswith(".")]
        if not files:
            raise UserError(f"--images {place} has no {', '.join(pictures.READ_SUFFIXES)} files")
    below = [p.relative_to(root).as_posix() for root, p in found]
    names = [
        f"{root.resolve().name}/{name}" if below.count(name) > 1 else name
        for (root, _), name in zip(found, below, strict=True)
    ]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--images has {twice[0]} twice; every picture needs a name of its own")
    listed, skipped = [], []
    for name, (_, path) in sorted(zip(names, found, strict=True)):
        try:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            listed.append(Picture(name=name, digest=digest, path=str(path.resolve())))
        except OSError as error:
            skipped.append({"name": name, "reason": error.strerror or str(error)})
    return listed, skipped


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The folder of parts of one key, on storage that every node reaches."""

    folder: storage.Place

    def path(self, model: str, picture: Picture, suffix: str, alpha: float | None = None) -> str:
        mark = "" if alpha is None else f"_alpha_{alpha:g}"
        return storage.join(self.folder, model[:32], f"{picture.digest[:32]}{mark}{suffix}")

    def read(self, model: str, picture: Picture) -> dict | None:
        """What is known of the picture, None when it is not finished."""
        try:
            return json.loads(storage.read(self.path(model, picture, ".json")))
        except FileNotFoundError:
            return None

    def is_done(self, model: str, picture: Picture, shown: bool) -> bool:
        """Whether nothing is left to do; a picture that is shown needs its PNGs, too."""
        part = self.read(model, picture)
        points = part["points"] if part and shown else []
        return part is not None and all(storage.exists(self.path(model, picture, ".png", p["alpha"])) for p in points)

    def features(self, model: str, picture: Picture, alpha: float | None = None) -> np.ndarray:
        content = storage.read(self.path(model, picture, ".npy", alpha))
        return np.load(io.BytesIO(content), allow_pickle=False)


def write_array(place: str, x: np.ndarray) -> None:
    file = io.BytesIO()
    np.save(file, x, allow_pickle=False)
    storage.write(place, file.getvalue())


@dataclass(frozen=True, kw_only=True)
class Coder:
    """Codes and measures pictures in one process."""

    models: Mapping[str, Model]
    """By digest."""
    quality: Quality
    features: Features | None
    parts: Parts
    alphas: Sequence[float]
    shown: frozenset[str]
    """Names of the pictures whose decoded versions are kept."""
    manifest: Manifest | None = None

    def __call__(self, picture: Picture) -> str:
        """Finish one picture; returns why it could not be, or nothing."""
        shown = picture.name in self.shown
        try:
            x = picture.read(self.manifest)
            original = self.parts.path(ORIGINAL, picture, ".npy")
            if self.features and not storage.exists(original):
                write_array(original, self.features(x))
            for digest, model in self.models.items():
                if not self.parts.is_done(digest, picture, shown):
                    self.code(digest, model, picture, x, shown)
        except (ValueError, OSError, MemoryError) as error:
            return " ".join(str(error).split()) or type(error).__name__
        return ""

    def code(self, digest: str, model: Model, picture: Picture, x: np.ndarray, shown: bool) -> None:
        """One picture with one model: to a real file, and from it to every alpha."""
        with tempfile.NamedTemporaryFile(suffix=".egic") as file:
            start = time.perf_counter()
            file.write(model.compress(x))
            file.flush()
            encode_s, start = time.perf_counter() - start, time.perf_counter()
            content = Path(file.name).read_bytes()
            x_gan, x_mse = model.decode_pictures(content)
            decode_s = time.perf_counter() - start
        points: list[dict[str, float | None]] = []
        for alpha in self.alphas if x_mse is not None else (1.0,):
            x_hat = as_bytes(x_gan if x_mse is None else blend(x_gan, x_mse, alpha))
            points.append({"alpha": alpha, **self.quality(x_hat, x)})
            if self.features:
                write_array(self.parts.path(digest, picture, ".npy", alpha), self.features(x_hat))
            if shown:
                storage.write(self.parts.path(digest, picture, ".png", alpha), pictures.write(x_hat))
        size = {"height": x.shape[0], "width": x.shape[1], "bytes": len(content)}
        part = {**size, "encode_s": encode_s, "decode_s": decode_s, "points": points}
        storage.write(self.parts.path(digest, picture, ".json"), json.dumps(part).encode())


def first_readable(listed: Iterable[Picture], num: int, manifest: Manifest | None) -> list[Picture]:
    """The first `num` pictures that can be read."""
    found: list[Picture] = []
    for picture in listed:
        if len(found) == num:
            break
        try:
            picture.read(manifest)
            found.append(picture)
        except (ValueError, OSError):
            continue
    return found
