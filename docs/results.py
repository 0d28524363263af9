"""docs/results.md and its pictures, from an evaluation of the model in the package.

    egic evaluate --images KODAK --alphas 0,1 --qualities 10,40,70 --anchors jpeg,webp,avif \
        --metrics psnr,lpips_alex,lpips_vgg,dists --shown 8
    python docs/results.py outputs/evaluate/KEY
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tabulate import tabulate

from egic.errors import UserError, quiet, run_main
from egic.pictures import read as read_picture
from egic.report import evaluation_folder, page, panels, plots
from egic.report.curves import METRICS, Metric, number
from egic.report.evaluation_folder import CODEC, Evaluation, Shown
from egic.report.matched_rates import file_name, matched
from egic.report.picture_crops import busiest
from jobs.config.flags import parse_config

BPP = 0.08, 0.3
"""Rates that the model is meant for, where its wins are counted."""
SIDE = 256  # pixels of a crop
PLOTS = ("bpp_psnr_db", "bpp_lpips_vgg", "bpp_dists", "bpp_fid64", "psnr_dists")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write results.md, and its pictures into a folder beside it."""

    folder: Path
    """The evaluation's folder."""
    out: Path = Path("docs/results.md")
    """The page to write."""
    crops: int = 6
    """Pictures that are shown: the best and the worst of the model by DISTS against AVIF, and others between."""


def cell(entry: dict, metric: Metric) -> str:
    found = page.cell(entry, metric)
    return found.text + ("" if found.reliable else "*")


def means(found: Evaluation) -> str:
    """A row per codec and file size, by rising rate: means over the pictures."""
    columns = page.columns(found.sets)
    order: dict[str, int] = {}
    for entry in found.sets:
        if entry["codec"] == CODEC:
            order.setdefault(matched(file_name(entry)), len(order))

    def place(entry: dict) -> tuple[int, bool]:
        own = entry["codec"] == CODEC
        return order[matched(file_name(entry)) if own else entry["point"]], not own

    lines = []
    for entry in sorted((e for e in found.sets if e["codec"] == CODEC or e["point"] in order), key=place):
        own = entry["codec"] == CODEC
        name = f"EGIC, {entry['point']}" if own else entry["label"]
        lines.append([name, f"{entry['bpp']:.3f}", *(cell(entry, metric) for metric in columns)])
    table = tabulate(
        lines, ["codec", "bpp", *(metric.title for metric in columns)], tablefmt="github", disable_numparse=True
    )
    return table + ("\n\n\\* too few patches for a reliable value." if "*" in table else "")


def in_range(found: Evaluation) -> Iterator[tuple[dict, dict, dict]]:
    """(model's row, the same file's row at the lowest alpha, other codec's row of equal size) of all files in BPP."""
    others = {(r["name"], r["point"], r["label"]): r for r in found.rows if r["codec"] != CODEC}
    labels = sorted({label for _, _, label in others})
    own = [r for r in found.rows if r["codec"] == CODEC]
    faithful = {(r["name"], file_name(r)): r for r in sorted(own, key=lambda r: -(r["alpha"] or 0))}
    for row in own:
        if row["alpha"] == 1 and BPP[0] <= row["bpp"] <= BPP[1]:
            for label in labels:
                if (other := others.get((row["name"], matched(file_name(row)), label))) is not None:
                    yield row, faithful[row["name"], file_name(row)], other


def wins(found: Evaluation) -> str:
    """Share of files on which the model is better than each codec of equal size, with the mean difference."""
    questions = [("alpha 1", "dists"), ("alpha 1", "lpips_vgg"), ("alpha 1", "lpips_alex"), ("alpha 0", "psnr_db")]
    cases = list(in_range(found))
    lines = []
    for label in sorted({other["label"] for _, _, other in cases}):
        line = [label, str(sum(other["label"] == label for _, _, other in cases))]
        for alpha, name in questions:
            pairs = [
                (number(row if alpha == "alpha 1" else faithful, name), number(other, name))
                for row, faithful, other in cases if other["label"] == label
            ]  # fmt: skip
            deltas = [a - b for a, b in pairs if a is not None and b is not None]
            ends = evaluation_folder.interval(deltas)
            if ends is None:
                line.append("-")
                continue
            better = np.mean(np.array(deltas) < 0 if METRICS[name].lower_is_better else np.array(deltas) > 0)
            digits = METRICS[name].digits - 1
            line.append(f"{better:.0%} ({ends[0]:+.{digits}f} to {ends[1]:+.{digits}f})")
        lines.append(line)
    heads = ["at equal bytes against", "files", *(f"{METRICS[name].title}, {alpha}" for alpha, name in questions)]
    return tabulate(lines, heads, tablefmt="github", disable_numparse=True)


def crops(found: Evaluation, count: int, folder: Path) -> list[tuple[str, str]]:
    """(file name, caption) of pictures from the best to the worst for the model, by DISTS against AVIF (or JPEG)."""
    shown = evaluation_folder.shown(found)
    cases = [case for case in in_range(found) if case[0]["name"] in shown]
    rival = "AVIF" if any(other["label"] == "AVIF" for _, _, other in cases) else "JPEG"
    quality = sorted({row["quality"] or 0 for row, _, _ in cases})
    middle = quality[len(quality) // 2] if quality else 0
    gain = {
        row["name"]: (number(row, "dists") or 0) - (number(other, "dists") or 0)
        for row, _, other in cases if other["label"] == rival and (row["quality"] or 0) == middle
    }  # fmt: skip
    ranked = sorted(gain, key=lambda name: gain[name])
    chosen = (
        [ranked[i] for i in np.unique(np.linspace(0, len(ranked) - 1, count).round().astype(int))] if ranked else []
    )
    made = []
    for name in chosen:
        original, decoded = shown[name]
        png = folder / f"{evaluation_folder.slug(Path(name).stem)}.webp"
        sheet(read_picture(original.read_bytes())[0], same_file(decoded, middle)).save(png, quality=90)
        made.append((png.name, f"{name}: DISTS {gain[name]:+.3f} against {rival}"))
    return made


def same_file(decoded: Sequence[Shown], quality: int) -> list[Shown]:
    """The model's decoded pictures of one file, and the other codecs' at its size."""
    own = [s for s in decoded if s.row["codec"] == CODEC and (s.row["quality"] or 0) == quality]
    return own + [s for s in decoded if s.row["codec"] != CODEC and s.row["point"] == matched(file_name(own[0].row))]


def sheet(x: np.ndarray, decoded: Sequence[Shown]) -> Image.Image:
    top, left = busiest(x, SIDE)

    def crop(picture: np.ndarray) -> np.ndarray:
        return picture[top : top + SIDE, left : left + SIDE]

    names = [f"alpha {s.row['alpha']:g}" if s.row["codec"] == CODEC else s.row["label"] for s in decoded]
    titles = ["original", *(f"{name}: {s.row['bytes']:,} bytes" for name, s in zip(names, decoded, strict=True))]
    return panels.panel([[crop(x), *(crop(read_picture(s.file.read_bytes())[0]) for s in decoded)]], titles)


PAGE = """# Results of the model in the package

Made by `docs/results.py`, which names its command, from {num} pictures ({names}). None of them was trained on. What the
model was trained on and for how long: [its card](../egic/models/small/README.md).

Each picture was written to a file at every quality and decoded from it at two alphas. Other codecs have the setting
whose file is nearest in size. LPIPS (VGG) is a training loss of the model, and DISTS uses the same network, with other
weights and statistics: LPIPS (AlexNet) is the independent one.

## Where it wins, and where not

Files of {low:g} to {high:g} bits per pixel: the share on which EGIC is better, and the 95 % bootstrap interval of the
mean difference (EGIC minus the other).

{wins}

## Means

{means}

Seconds per picture on the machine of this evaluation, beside its other workers: {encode:.2f} to compress, {decode:.2f}
to decompress.

## Curves

{plots}

## Crops, from the best to the worst

{crops}
"""


def main() -> None:
    options = parse_config(Options, prog="docs/results.py")
    found = evaluation_folder.read(options.folder)
    if not any(row["codec"] == CODEC for row in found.rows):
        raise UserError(f"{options.folder} has no EGIC model")
    folder = options.out.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.webp"):  # crops of other pictures
        old.unlink()
    links = []
    for plot in plots.all_plots(found.sets):
        if plot.name in PLOTS:
            (folder / f"{plot.name}.png").write_bytes(plot.png["light"])
            links.append(f"![{plot.title}]({folder.name}/{plot.name}.png)")
    own = [row for row in found.rows if row["codec"] == CODEC]
    names = sorted({row["name"] for row in own})
    shown = [f"{text}\n\n![{text}]({folder.name}/{file})" for file, text in crops(found, options.crops, folder)]
    text = PAGE.format(
        num=len(names), names=f"{names[0]} to {names[-1]}", low=BPP[0], high=BPP[1],
        wins=wins(found), means=means(found),
        encode=np.mean([row["encode_s"] for row in own]), decode=np.mean([row["decode_s"] for row in own]),
        plots="\n".join(links), crops="\n\n".join(shown),
    )  # fmt: skip
    options.out.write_text(text)
    print(options.out)


if __name__ == "__main__":
    quiet()
    raise SystemExit(run_main(main))
