"""Small files with the evaluation's results of each picture, so that a killed run can continue.

    parts/<key>/<model digest>/<picture>_quality_50.json              sizes, times, measures at every alpha
    parts/<key>/<model digest>/<picture>_quality_50_alpha_0.5.png     the decoded picture, of those that are shown
    parts/<key>/<model digest>/<picture>_quality_50_alpha_0.5_256.npy features of its patches of 256 pixels
    parts/<key>/jpeg/<picture>_bytes_20000.json, .png, _256.npy       another codec's file nearest to this size
    parts/<key>/original/<picture>_256.npy                            features of the original's patches

<picture> is its digest; quality and alpha are omitted for models without them. Every file is written atomically, the
.json last: if it exists, the part is finished. `key` covers everything else that determines the content, so that a run
with more pictures, models, qualities or codecs reuses the parts of an earlier one.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from egic.report import matched_rates
from jobs.evaluation.listing import Picture
from jobs.storage import files

ORIGINAL = "original"


def alpha_mark(alpha: float | None) -> str:
    """The part of a file's name for the alpha."""
    return "" if alpha is None else f"_alpha_{alpha:g}"


@dataclass(frozen=True, kw_only=True)
class Task:
    """The results to compute for every picture: the files of models, and other codecs at the same sizes."""

    labels: Mapping[str, str]
    """Digests of models by label."""
    qualities: Mapping[str, Sequence[int | None]]
    """Qualities of each model by digest; (None,) for a model of one rate."""
    anchors: Sequence[str] = ()
    """Names of other codecs."""
    patches: Sequence[int] = ()
    """Sides of the patches whose features are stored."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The folder of parts of one key, on storage that every node reaches."""

    folder: files.Place

    def model(self, digest: str, picture: Picture, quality: int | None) -> str:
        """The path of a model's part, without suffix."""
        mark = "" if quality is None else f"_quality_{quality}"
        return files.join(self.folder, digest[:32], picture.digest[:32] + mark)

    def anchor(self, name: str, picture: Picture, wanted: int) -> str:
        """The path of another codec's part, without suffix."""
        return files.join(self.folder, name, f"{picture.digest[:32]}_bytes_{wanted}")

    def original(self, picture: Picture) -> str:
        """The path of the original's features, without suffix."""
        return files.join(self.folder, ORIGINAL, picture.digest[:32])

    def targets(self, task: Task, picture: Picture) -> dict[str, int] | None:
        """The points of other codecs and their sizes, or None until every model's file exists."""
        sizes: dict[str, int] = {}
        for label, digest in sorted(task.labels.items()):
            for quality in task.qualities[digest]:
                if (part := read(self.model(digest, picture, quality))) is None:
                    return None
                sizes[matched_rates.file_name({"label": label, "quality": quality})] = part["bytes"]
        return matched_rates.targets(sizes)

    def is_done(self, task: Task, picture: Picture, shown: bool) -> bool:
        """Whether the picture is finished; if it is shown, this includes its PNGs."""
        models = [self.model(digest, picture, q) for digest, qualities in task.qualities.items() for q in qualities]
        if not all(is_whole(path, shown) for path in models) or not has_features(self.original(picture), task.patches):
            return False
        wanted = self.targets(task, picture) or {}
        return all(is_whole(self.anchor(name, picture, w), shown) for name in task.anchors for w in wanted.values())


def read(path: str) -> dict | None:
    """A part's content, or None when it is not finished."""
    try:
        return json.loads(files.read(files.suffixed(path, ".json")))
    except FileNotFoundError:
        return None


def is_whole(path: str, shown: bool) -> bool:
    """Whether a part is finished, with its PNGs when it is shown."""
    part = read(path)
    points = part["points"] if part and shown else []
    return part is not None and all(
        files.exists(files.suffixed(path, alpha_mark(point["alpha"]) + ".png")) for point in points
    )


def has_features(path: str, patches: Sequence[int]) -> bool:
    """Whether the features of a part are stored."""
    return all(files.exists(files.suffixed(path, f"_{patch}.npy")) for patch in patches)


def read_features(path: str, patches: Sequence[int]) -> dict[int, np.ndarray]:
    """Features by the side of their patches. path: of a part, with the alpha's mark."""
    return {p: np.load(io.BytesIO(files.read(files.suffixed(path, f"_{p}.npy"))), allow_pickle=False) for p in patches}


def write_features(path: str, features: Mapping[int, np.ndarray]) -> None:
    """Write what `read_features` reads."""
    for patch, x in features.items():
        np.save(file := io.BytesIO(), x, allow_pickle=False)
        files.write(files.suffixed(path, f"_{patch}.npy"), file.getvalue())
