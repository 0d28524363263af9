"""Evaluation of a picture in one process: encode it to files with every codec, decode them, and measure."""

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from egic import pictures
from egic.errors import UserError, out_of_memory, reason
from egic.metrics.quality import Quality
from egic.model import Model, as_bytes, load
from egic.networks.orp import blend
from egic.report import anchors
from jobs.data.shards import Manifest
from jobs.evaluation import parts as parts_
from jobs.evaluation.listing import Picture
from jobs.evaluation.parts import Parts, Task, alpha_mark
from jobs.storage import files

if TYPE_CHECKING:
    import ray


@dataclass(frozen=True, kw_only=True)
class Coder:
    """Codes and measures pictures in one process."""

    models: Mapping[str, Model]
    """Models by digest."""
    task: Task
    quality: Quality
    features: Callable[[np.ndarray], dict[int, np.ndarray]]
    """A function as `Measures.features` returns it."""
    parts: Parts
    alphas: Sequence[float]
    shown: frozenset[str]
    """Names of the pictures whose decoded versions are stored."""
    manifest: Manifest | None = None

    def __call__(self, picture: Picture, notes: list[str] | None = None) -> str:
        """Evaluate one picture; returns "", or the reason why it could not be read or coded.

        notes: receives what the picture's file has that is not used.
        Any other error, such as one of the storage, is raised: what is finished by then is not computed again.
        """
        shown = picture.name in self.shown
        codecs, missing = anchors.find(self.task.anchors)
        for name, why in missing.items():
            raise UserError(f"this node lacks {name}, which the driver has: {why}")
        try:
            x = picture.read(self.manifest, notes)
        except (UserError, OSError, MemoryError) as error:
            return reason(error) or type(error).__name__
        try:
            original = self.parts.original(picture)
            if not parts_.has_features(original, self.task.patches):
                parts_.write_features(original, self.features(x))
            for digest, model in self.models.items():
                for quality in self.task.qualities[digest]:
                    path = self.parts.model(digest, picture, quality)
                    if not parts_.is_whole(path, shown):
                        self.code(path, model, quality, x, shown)
            for anchor in codecs:
                self.match(anchor, picture, x, shown)
        except (UserError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not out_of_memory(error):
                raise
            return reason(error) or type(error).__name__
        return ""

    def code(self, path: str, model: Model, quality: int | None, x: np.ndarray, shown: bool) -> None:
        """Encode one picture with one model at one quality to a real file, and decode it at every alpha."""
        with tempfile.NamedTemporaryFile(suffix=".egic") as file:
            start = time.perf_counter()
            file.write(model.compress(x, quality=quality))
            file.flush()
            encode_s, start = time.perf_counter() - start, time.perf_counter()
            content = Path(file.name).read_bytes()
            x_gan, x_mse = model.decode_pictures(content)
            decode_s = time.perf_counter() - start
        points: list[dict[str, float | None]] = []
        for alpha in self.alphas if x_mse is not None else (None,):
            x_hat = as_bytes(x_gan if x_mse is None or alpha is None else blend(x_gan, x_mse, alpha))
            points.append({"alpha": alpha, **self.measured(files.suffixed(path, alpha_mark(alpha)), x_hat, x, shown)})
        self.write(path, x, len(content), encode_s, decode_s, points)

    def match(self, anchor: anchors.Anchor, picture: Picture, x: np.ndarray, shown: bool) -> None:
        """Encode one picture with another codec, at the sizes of all models' files."""
        matcher, measured = anchors.Matcher(anchor, x), {}
        wanted = self.parts.targets(self.task, picture)
        assert wanted is not None  # every model's file is finished
        for num_bytes in wanted.values():
            path = self.parts.anchor(anchor.codec, picture, num_bytes)
            if parts_.is_whole(path, shown):
                continue
            coded, step = matcher.nearest(num_bytes), matcher.step(num_bytes)
            if step not in measured:
                measured[step] = self.quality(coded.picture, x), self.features(coded.picture)
            values, features = measured[step]
            parts_.write_features(path, features)
            if shown:
                files.write(files.suffixed(path, ".png"), pictures.write(coded.picture))
            points = [{"alpha": None, **values}]
            self.write(path, x, coded.num_bytes, coded.encode_s, coded.decode_s, points)

    def measured(self, path: str, x_hat: np.ndarray, x: np.ndarray, shown: bool) -> dict[str, float | None]:
        """Measures of a decoded picture; writes its features, and the picture itself when it is shown."""
        parts_.write_features(path, self.features(x_hat))
        if shown:
            files.write(files.suffixed(path, ".png"), pictures.write(x_hat))
        return self.quality(x_hat, x)

    def write(
        self, path: str, x: np.ndarray, num_bytes: int, encode_s: float, decode_s: float, points: Sequence[Mapping]
    ) -> None:
        """Write a finished part."""
        size = {"height": x.shape[0], "width": x.shape[1], "bytes": num_bytes}
        part = {**size, "encode_s": encode_s, "decode_s": decode_s, "points": points}
        files.write(files.suffixed(path, ".json"), json.dumps(part).encode())


class Worker:
    """A `Coder` in one process of the cluster; Ray Data calls it with batches of one picture number.

    models: files of each model by its digest. measures: `Measures`. coder: the rest of `Coder`'s fields.
    """

    def __init__(
        self, models: Mapping[str, "ray.ObjectRef"], measures: "ray.ObjectRef", num_threads: int, gpu: bool,
        pictures: Sequence[Picture], **coder,
    ):  # fmt: skip
        import ray
        import torch

        torch.set_num_threads(num_threads)
        device, loaded = "cuda" if gpu else "cpu", {}
        for digest, ref in models.items():
            with tempfile.TemporaryDirectory() as folder:
                for name, content in ray.get(ref).items():
                    Path(folder, name).write_bytes(content)
                loaded[digest] = load(folder, device)
        given, self.pictures = ray.get(measures), pictures
        self.coder = Coder(models=loaded, quality=given.quality(device), features=given.features(device), **coder)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list]:
        (number,), began, notes = batch["id"], time.perf_counter(), list[str]()
        picture = self.pictures[int(number)]
        why, time_s = self.coder(picture, notes), time.perf_counter() - began
        return {"name": [picture.name], "reason": [why], "notes": ["; ".join(notes)], "time_s": [time_s]}
