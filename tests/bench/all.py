"""Run the benchmarks and print the README's table in Markdown, with stored results for those that are not run.

    python tests/bench/all.py [codec data entropy_coder ...] [--keep] [--table]

A benchmark whose arguments need a variable that is not set is skipped with a message. `--keep` appends each line to
tests/bench/results/NAME.jsonl; `--table` runs nothing.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
ARGUMENTS = {
    "codec": ("{EGIC_GOLDEN}", "{EGIC_KODAK}/kodim01.png"),
    "portability": ("{EGIC_GOLDEN}", "{EGIC_KODAK}"),
}
"""Arguments of a benchmark, with {VARIABLE} from the environment; others have none."""
REFERENCE = ("--reference", "{EGIC_REFERENCE_CODE}", "--reference-python", "{EGIC_REFERENCE_PYTHON}")
COMPARED = {"codec", "steps"}
"""Benchmarks that alternate with the reference, if these variables are set."""
SAME = ("bench", "step", "stage", "precision", "device", "height", "batch", "coder", "how")
"""Lines that agree in these fields measure the same; the last one is used."""


def arguments_of(name: str) -> list[str]:
    """The benchmark's arguments. Raises KeyError with the variable that is not set."""
    with_reference = name in COMPARED and "EGIC_REFERENCE_CODE" in os.environ
    arguments = ARGUMENTS.get(name, ()) + (REFERENCE if with_reference else ())
    return [argument.format_map(os.environ) for argument in arguments]


def run(name: str) -> list[str]:
    """Run the benchmark; returns its JSON lines. Its messages are printed."""
    command = [sys.executable, str(HERE / f"bench_{name}.py"), *arguments_of(name)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        print(f"{name}: ended with status {done.returncode}", file=sys.stderr)
    return [line for line in done.stdout.splitlines() if line.startswith("{")]


def newest(lines: Iterable[dict]) -> list[dict]:
    """The last of the lines that measure the same, in the order of the first ones."""
    found = {}
    for line in lines:
        found[tuple(str(line.get(key)) for key in SAME)] = line
    return list(found.values())


def steps_row(line: dict) -> tuple[str, str, str]:
    ratio = f"{line['of_reference']:.2f} of the reference" if "of_reference" in line else ""
    ratio += f" ({line['cpu_of_reference']:.2f} in CPU time)" if ratio else ""
    memory = f"{line['peak_memory_gb']} GB of GPU memory" if "peak_memory_gb" in line else ""
    share = f"{100 * line['flop_share']:.0f} % of bfloat16 products' speed"
    what = f"{line['step']} step, {line['batch']} pictures, {line['precision']}"
    what += f", {line['how']}" if line.get("how", "eager") != "eager" else ""
    time = f"{line['time_s']:.2f} s" if line["time_s"] > 0.2 else f"{1e3 * line['time_s']:.1f} ms"
    return what, f"{time}, {line['images_per_s']:.3g} images/s", ", ".join(filter(None, (ratio, share, memory)))


def codec_rows(line: dict) -> list[tuple[str, str, str]]:
    def row(way: str) -> tuple[str, str, str]:
        ratio = line.get(f"{way}_of_reference")
        what = f"{way} {line['height']}x{line['width']}, {line['precision']}"
        return what, f"{line[f'{way}_s']:.2f} s", f"{ratio:.2f} of the reference" if ratio else ""

    return [row("compress"), row("decompress")]


def data_row(line: dict) -> tuple[str, str, str]:
    ratios = f"{line['stream_over_dataloader']} of a naive DataLoader, {line['stream_over_own_work']} of the bare work"
    return f"data stream, {line['pictures']}", f"{line['images_per_s']['stream']:.0f} images/s", ratios


def start_rows(line: dict) -> list[tuple[str, str, str]]:
    share = f"{100 * line['between_steps']:.0f} % of {line['pipeline_s']:.0f} s"
    return [
        ("tiny pipeline, command to first step", f"{line['first_step_s']:.1f} s", ""),
        ("tiny pipeline, neither data, steps nor validation", share, ""),
    ]


def scaling_row(line: dict) -> tuple[str, str, str]:
    parts = f"machine {line['efficiency_of_machine']:.2f}, communication {line['efficiency_of_communication']:.2f}"
    return f"two workers against one, {line['stage']}", f"efficiency {line['efficiency']:.2f}", parts


def archive_row(line: dict) -> tuple[str, str, str]:
    what = f"archive of {line['height']}x{line['width']}, {line['cores']} cores"
    ratio = f"{line['of_cores_times_one_process']:.2f} of cores x one process"
    return what, f"{line['pictures_per_s']['archive']:.1f} pictures/s", ratio


ROWS: dict[str, Callable[[dict], list]] = {
    "steps": lambda line: [steps_row(line)],
    "codec": codec_rows,
    "data": lambda line: [data_row(line)],
    "start": start_rows,
    "scaling": lambda line: [scaling_row(line)],
    "archive": lambda line: [archive_row(line)],
}


def table(lines: list[dict]) -> str:
    """Markdown of the newest line of everything that is measured, in the order of ROWS."""
    out = ["| what | measured | beside it | on | date, commit |", "|---|---|---|---|---|"]
    for bench, rows in ROWS.items():
        for line in newest(line for line in lines if line["bench"] == bench):
            where = line.get("device", "cpu")
            where += f", {line['threads']} threads" if "threads" in line else ""
            when = f"{line.get('date', '')} {line.get('commit', '')}".strip()
            out += [f"| {' | '.join((*row, where, when))} |" for row in rows(line)]
    return "\n".join(out)


def main() -> None:
    names = sorted(f.stem.removeprefix("bench_") for f in HERE.glob("bench_*.py"))
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("benchmarks", nargs="*", metavar="NAME", help=f"{', '.join(names)}; all without")
    arguments.add_argument("--keep", action="store_true", help="append the lines to tests/bench/results")
    arguments.add_argument("--table", action="store_true", help="run nothing")
    args = arguments.parse_args()
    if unknown := [name for name in args.benchmarks if name not in names]:
        arguments.error(f"{unknown[0]} is not a benchmark; choose from {', '.join(names)}")
    lines = [json.loads(line) for file in sorted(RESULTS.glob("*.jsonl")) for line in file.read_text().splitlines()]
    for name in [] if args.table else args.benchmarks or names:
        try:
            found = run(name)
        except KeyError as e:
            print(f"{name}: left out, {e.args[0]} is not set", file=sys.stderr)
            continue
        print("\n".join(found), file=sys.stderr)
        lines += map(json.loads, found)
        if args.keep:
            with (RESULTS / f"{name}.jsonl").open("a") as file:
                file.writelines(f"{line}\n" for line in found)
    print(table(lines))


if __name__ == "__main__":
    main()
