"""Paired comparisons: two codecs on the same pictures at the same file sizes, picture by picture.

Metrics vary more between pictures than between codecs. Differences on the same picture remove that variation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from egic.report.curves import METRICS, Metric, number
from egic.report.evaluation_folder import CODEC, interval, mean
from egic.report.matched_rates import file_name, matched


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean of metric(`point` of the model `label`) - metric(`other`), over the pictures that have both."""

    label: str
    point: str
    other: str
    metric: Metric
    mean: float
    interval: tuple[float, float]
    """The 95 % bootstrap interval of the mean."""
    wins: int
    """Number of pictures on which the model is better."""
    num_pictures: int


def differences(rows: Sequence[Mapping]) -> list[Difference]:
    """Differences of every point of every model to each other codec at the size of the model's file, and to the lowest
    alpha of the same file; without metrics that fewer than two pictures have."""
    values: dict[tuple[str, str], dict[str, Mapping]] = {}
    for row in rows:
        values.setdefault((row["label"], row["point"]), {})[row["name"]] = row
    anchors = list(dict.fromkeys(row["label"] for row in rows if row["codec"] != CODEC))
    found = []
    for (label, point), of_point in values.items():
        row = next(iter(of_point.values()))
        if row["codec"] != CODEC:
            continue
        others = {anchor: values.get((anchor, matched(file_name(row)))) for anchor in anchors}
        lowest = _lowest_alpha(rows, row)
        if lowest != point:
            others[lowest] = values[label, lowest]
        for other, of_other in others.items():
            for metric in METRICS.values():
                found += _difference(label, point, other, metric, of_point, of_other or {})
    return found


def _lowest_alpha(rows: Sequence[Mapping], row: Mapping) -> str:
    """The point of the row's file with the lowest alpha."""
    same = [r for r in rows if r["label"] == row["label"] and r.get("quality") == row.get("quality")]
    return min(same, key=lambda r: number(r, "alpha") or 0)["point"]


def _difference(
    label: str, point: str, other: str, metric: Metric, a: Mapping[str, Mapping], b: Mapping[str, Mapping]
) -> list[Difference]:
    """The differences of two points over the pictures that have both; [] for fewer than two pictures."""
    pairs = [(number(a[name], metric.name), number(b[name], metric.name)) for name in a if name in b]
    deltas = [x - y for x, y in pairs if x is not None and y is not None]
    found, ends = mean(deltas), interval(deltas)
    if found is None or ends is None:
        return []
    wins = sum((delta < 0) if metric.lower_is_better else (delta > 0) for delta in deltas)
    return [
        Difference(
            label=label, point=point, other=other, metric=metric, mean=found, interval=(ends[0], ends[1]), wins=wins,
            num_pictures=len(deltas),
        )
    ]  # fmt: skip
