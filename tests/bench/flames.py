"""A flame graph of several processes from samples of py-spy, as one small picture.

    py-spy record --subprocesses --function --rate 40 --duration 40 --format raw --output raw.txt --pid PID
    python tests/bench/flames.py raw.txt picture.svg --rate 40 --title "..." [--only REGEX]

Each bar is a function; its width is the time spent in it and in the functions that it calls. The bottom row is the
processes, merged by kind; imports are shown as the imported module.
"""

import argparse
import re
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.common import drawing

KINDS = {"dashboard/agent": "Ray's agent", "runtime_env/agent": "Ray's agent", "log_monitor": "Ray's log monitor"}
KINDS |= {"autoscaler": "Ray's autoscaler", "dashboard": "Ray's dashboard", "default_worker": "Ray's workers"}
FRAME = re.compile(r"(?P<function>.*) \((?P<file>[^():]+):\d+\)$")
NOISE = ("threading.py", "concurrent/futures", "frozen ", "runpy", "egic/errors.py", "tracing_helper")
NOISE += ("client_mode_hook", "map_transformer.py", "default_worker.py", "datasource.py")
"""Files whose functions only call others, and are not shown."""


def kind(processes: list[str]) -> str:
    """Kind of a process, from its name and those of its ancestors."""
    last = processes[-1] if processes else ""
    if found := re.search(r"ray::(\w+)", last):
        return "Ray's workers" if found[1] == "IDLE" else f"ray::{found[1]}"
    named = next((name for part, name in KINDS.items() if part in last), "")
    return named or ("driver" if len(processes) < 2 else "other processes of the driver")


def stack_of(line: str, depth: int) -> tuple[tuple[str, ...], int]:
    """Process and functions, outermost first, and their number of samples."""
    stack, count = line.rsplit(" ", 1)
    parts = stack.split(";")
    processes = [part for part in parts if part.startswith("process ")]
    names: list[str] = []
    for part in parts[len(processes) :]:
        if part.startswith("become_worker "):  # earlier frames belong to the driver
            names.clear()
            continue
        found = FRAME.match(part)
        if not found or any(noise in found["file"] for noise in NOISE):
            continue
        file = found["file"]
        name = f"import {file}" if found["function"] == "<module>" else f"{found['function']} ({file})"
        if not names or names[-1] != name:
            names.append(name)
    return (kind(processes), *names[:depth]), int(count)


def draw(stacks: Counter, path: Path, title: str, rate: float, narrowest: float = 0.004) -> None:
    """Draw bars from bottom to top, without those narrower than a share of the whole."""
    whole = sum(stacks.values())
    with drawing(path, f"{title}: {whole / rate:.0f} s of all processes", (20, 8)) as axes:

        def bars(inside: Counter, left: int, level: int) -> None:
            sizes: Counter = Counter()
            for stack, count in inside.items():
                if len(stack) > level:
                    sizes[stack[level]] += count
            for name, size in sizes.most_common():
                if size < narrowest * whole:
                    break
                colour = "#ddcc77" if not level else "#ee9977" if name.startswith("import ") else "#88ccee"
                (bar,) = axes.barh(level, size / rate, 0.92, left / rate, color=colour, edgecolor="white", lw=0.5)
                label = f" {size / rate:.1f} s {name}"[: int(320 * size / whole)]
                if len(label) > 3:
                    axes.text(left / rate, level, label, fontsize=6, va="center").set_clip_path(bar)
                bars(Counter({s: n for s, n in inside.items() if s[level : level + 1] == (name,)}), left, level + 1)
                left += size

        bars(stacks, 0, 0)
        axes.set_yticks([])
        axes.margins(0)
        axes.set_xlabel("s, waiting for a core included")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("raw", type=Path)
    arguments.add_argument("picture", type=Path)
    arguments.add_argument("--rate", type=float, default=40, help="samples per second")
    arguments.add_argument("--title", default="")
    arguments.add_argument("--depth", type=int, default=12, help="functions shown above each other")
    arguments.add_argument("--only", default="", help="use only stacks that match this regular expression")
    args = arguments.parse_args()
    stacks: Counter = Counter()
    for line in args.raw.read_text().splitlines():
        if re.search(args.only, line):
            stack, count = stack_of(line, args.depth)
            stacks[stack] += count
    draw(stacks, args.picture, args.title, args.rate)


if __name__ == "__main__":
    main()
