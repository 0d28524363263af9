"""Plots of an evaluation as PNG files, each for a light and a dark page."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, zip_longest

from egic.report.curves import METRICS, Metric, is_reliable, number
from egic.report.evaluation_folder import CODEC
from egic.report.published import POINTS

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette, which colour-blind readers can distinguish; markers differ as well."""
MARKERS = ("o", "s", "D", "^", "v", "P")
PUBLISHED_MARKERS = ("*", "X", "d", "p", "h", "<", ">", "8")


@dataclass(frozen=True, kw_only=True)
class Theme:
    """Colours of a page."""

    name: str
    back: str
    text: str
    faint: str
    grid: str


THEMES = (
    Theme(name="light", back="#ffffff", text="#1c2126", faint="#6b747d", grid="#e3e6e9"),
    Theme(name="dark", back="#1b2025", text="#e8eaed", faint="#98a2ad", grid="#333b43"),
)


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A plot: file name without suffix, title, description, and PNG by theme."""

    name: str
    title: str
    text: str
    png: dict[str, bytes]


def all_plots(sets: Sequence[Mapping]) -> list[Plot]:
    """Plots of distortion against realism, then of every metric but KID over the rate, where values exist."""
    plots: list[Plot] = []
    for name in ("fid256", "fid64", "lpips_vgg", "dists", "lpips_alex"):
        models = [e for e in sets if number(e, "alpha") is not None and _has(e, "psnr_db", name)]
        if models and len(plots) < 2:
            plots.append(_plot(f"psnr_{name}", *_realism_words(METRICS[name]), _realism, sets, METRICS[name]))
    for metric in METRICS.values():
        if not metric.name.startswith("kid") and any(_has(e, "bpp", metric.name) for e in sets):
            plots.append(_plot(f"bpp_{metric.name}", *_rate_words(metric, sets), _rate, sets, metric))
    return plots


def _has(entry: Mapping, *names: str) -> bool:
    return all(number(entry, name) is not None for name in names)


def _realism_words(metric: Metric) -> tuple[str, str]:
    return (
        f"PSNR against {metric.title}",
        f"Each line is one file decoded at every alpha, from most faithful (alpha 0) to most realistic (alpha 1); a "
        f"model with several rates has one line per rate. Better is to the right and down.{_hollow(metric)}",
    )


def _rate_words(metric: Metric, sets: Sequence[Mapping]) -> tuple[str, str]:
    better, between = "down" if metric.lower_is_better else "up", ""
    if {e.get("interpolated") for e in sets} >= {True, False}:
        between = " Large marks are the rates that the model was trained for, points are the rates between them."
    return f"{metric.title} over rate", f"Better is to the left and {better}.{between}{_hollow(metric)}"


def _hollow(metric: Metric) -> str:
    return " Hollow marks come from too few patches to be reliable." if metric.patch else ""


def _plot(name: str, title: str, text: str, draw: Callable, sets: Sequence[Mapping], metric: Metric) -> Plot:
    """Draw the plot once per theme."""
    import matplotlib
    from matplotlib.figure import Figure

    png = {}
    for theme in THEMES:
        style = {
            "font.size": 9, "text.color": theme.text, "axes.labelcolor": theme.text, "axes.edgecolor": theme.faint,
            "axes.facecolor": theme.back, "figure.facecolor": theme.back, "axes.spines.top": False,
            "axes.spines.right": False, "xtick.color": theme.faint, "ytick.color": theme.faint,
            "xtick.labelcolor": theme.text, "ytick.labelcolor": theme.text, "grid.color": theme.grid,
            "axes.axisbelow": True, "lines.linewidth": 1.8, "lines.markersize": 5, "legend.frameon": False,
            "legend.fontsize": 8,
        }  # fmt: skip
        with matplotlib.rc_context(style):  # type: ignore[arg-type]  # its keys are literals, ours are str
            figure = Figure(figsize=(5.4, 3.9), dpi=180, layout="constrained")
            axes = figure.add_subplot()
            axes.grid(True)
            axes.margins(0.1)
            draw(axes, sets, metric, theme)
            _legend(figure, axes)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png")
        png[theme.name] = buffer.getvalue()
    return Plot(name=name, title=title, text=text, png=png)


def _legend(figure, axes) -> None:
    """The legend below the axes, in as many columns as fit; the figure grows with its lines."""
    handles, labels = axes.get_legend_handles_labels()
    labels = [label if len(label) <= 60 else label[:59] + "…" for label in labels]
    if labels:
        columns = max(1, min(3, 88 // (max(map(len, labels)) + 7)))  # 88 letters of this size fit into 5.4 inches
        figure.set_figheight(3.6 + 0.16 * -(-len(labels) // columns))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _styles(sets: Sequence[Mapping]) -> dict[str, dict]:
    """Colour and marker of every label, models before anchors, the same in every plot."""
    labels = dict.fromkeys(e["label"] for e in sets if e["codec"] == "egic")
    labels |= dict.fromkeys(e["label"] for e in sets)
    rounds = len(COLOURS)
    return {
        label: {"color": COLOURS[i % rounds], "marker": MARKERS[(i + i // rounds) % len(MARKERS)]}
        for i, label in enumerate(labels)
    }


def _realism(axes, sets: Sequence[Mapping], metric: Metric, theme: Theme) -> None:
    """PSNR to the right, a distance upwards; models are lines over alpha, anchors over the rate."""
    for label, style in _styles(sets).items():
        for entries in _files(sets, label):
            points = sorted(
                (e for e in entries if _has(e, "psnr_db", metric.name)),
                key=lambda e: (number(e, "alpha") or 0, number(e, "bpp") or 0),
            )
            _line(axes, points, "psnr_db", metric, style | _dashed(points), label, theme)
            for e in points:
                if number(e, "alpha") in (0, 1):
                    axes.annotate(
                        f"α {e['alpha']:g}", (e["psnr_db"], e[metric.name]), xytext=(6, 4 if e["alpha"] == 0 else -9),
                        textcoords="offset points", fontsize=8, color=theme.text,
                    )  # fmt: skip
    _published(axes, "psnr_db", metric, theme)
    axes.set_xlabel("PSNR (dB)")
    _value_axis(axes, metric)


def _rate(axes, sets: Sequence[Mapping], metric: Metric, theme: Theme) -> None:
    """bpp to the right. A model of several rates has a line for its highest and its lowest alpha, one of a single rate
    an upright line over its alphas."""
    from matplotlib.ticker import LogLocator, NullFormatter

    for label, style in _styles(sets).items():
        entries = [e for e in sets if e["label"] == label and _has(e, "bpp", metric.name)]
        alphas = sorted({alpha for e in entries if (alpha := number(e, "alpha")) is not None})
        rates = {e["bpp"] for e in entries}
        if not alphas or len(rates) == 1:
            points = sorted(entries, key=lambda e: (e["bpp"], number(e, "alpha") or 0))
            _line(axes, points, "bpp", metric, style | _dashed(points), label, theme)
            _name_alphas(axes, points, metric, theme)
            continue
        for alpha, dashes in zip_longest(dict.fromkeys((alphas[-1], alphas[0])), ("-", ":")):
            if alpha is not None:
                points = sorted((e for e in entries if number(e, "alpha") == alpha), key=lambda e: e["bpp"])
                _line(axes, points, "bpp", metric, style | {"ls": dashes}, f"{label}, α {alpha:g}", theme)
    _published(axes, "bpp", metric, theme)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    if high / low < 2:  # a single rate
        low, high = low / 1.5, high * 1.5
        axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low > 6 else (1, 1.5, 2, 3, 4, 5, 6, 8)))
    axes.xaxis.set_major_formatter(lambda value, place: f"{value:.3g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="minor", bottom=False)
    axes.set_xlabel("rate (bits per pixel)")
    _value_axis(axes, metric)


def _name_alphas(axes, points: Sequence[Mapping], metric: Metric, theme: Theme) -> None:
    """Write alpha at the ends of an upright line."""
    for e in points:
        if len(points) > 1 and number(e, "alpha") in (0, 1):
            axes.annotate(
                f"α {e['alpha']:g}", (e["bpp"], e[metric.name]), xytext=(7, -3), textcoords="offset points",
                fontsize=8, color=theme.text,
            )  # fmt: skip


def _files(sets: Sequence[Mapping], label: str) -> list[list[Mapping]]:
    """Groups of a label's entries, one line each: one group per rate for entries with an alpha, one for all others."""
    groups: dict[float | None, list[Mapping]] = {}
    for e in sets:
        if e["label"] == label:
            groups.setdefault(None if number(e, "alpha") is None else number(e, "bpp"), []).append(e)
    return list(groups.values())


def _dashed(points: Sequence[Mapping]) -> dict:
    return {"ls": "-" if points and points[0]["codec"] == CODEC else "--"}


def _line(axes, points: Sequence[Mapping], x: str, metric: Metric, style: Mapping, label: str, theme: Theme) -> None:
    """A line through the points; unreliable values have hollow marks. Each label has one entry in the legend."""
    if not points:
        return
    known = label in axes.get_legend_handles_labels()[1]
    marked = [i for i, e in enumerate(points) if not e.get("interpolated")]
    axes.plot(
        [e[x] for e in points], [e[metric.name] for e in points], **style, label=None if known else label, zorder=3,
        markevery=marked or None,
    )  # fmt: skip
    between = [e for e in points if e.get("interpolated")] if marked else []
    axes.plot(
        [e[x] for e in between], [e[metric.name] for e in between], ls="", marker=".", color=style["color"], zorder=3
    )
    doubtful = [e for e in points if not is_reliable(e, metric)]
    axes.plot(
        [e[x] for e in doubtful], [e[metric.name] for e in doubtful], ls="", marker=style["marker"],
        markerfacecolor=theme.back, markeredgecolor=style["color"], zorder=4,
    )  # fmt: skip


def _published(axes, x: str, metric: Metric, theme: Theme) -> None:
    """Published points in grey, with their data set in the legend."""
    kinds: dict[tuple[str, str], list] = {}
    for point in POINTS:
        if getattr(point, metric.name, None) is not None:
            kinds.setdefault((point.codec, point.data_set.split()[0]), []).append(point)
    for (codec, data_set), marker in zip(kinds, cycle(PUBLISHED_MARKERS), strict=False):
        points = kinds[codec, data_set]
        axes.plot(
            [getattr(p, x) for p in points], [getattr(p, metric.name) for p in points], ls=":", lw=1, marker=marker,
            ms=7, color=theme.faint, label=f"{codec} ({data_set}, published)", zorder=2,
        )  # fmt: skip


def _value_axis(axes, metric: Metric) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    better = "lower is better" if metric.lower_is_better else "higher is better"
    axes.set_ylabel(f"{metric.title} ({f'{metric.unit}, ' if metric.unit else ''}{better})")
    if metric.name.startswith("fid"):  # its values span two orders of magnitude
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, place: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
