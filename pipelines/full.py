#!/usr/bin/env python3
"""The whole pipeline: COCO pictures and panoptic masks in, a codec whose files decode at any alpha out.

    python pipelines/full.py tiny
    ray job submit --working-dir . -- python pipelines/full.py paper --data /shared/coco --output /shared/egic

Stages that are finished with the same configuration, code, parents and data are reused; the others run, side by side
where they do not depend on each other and the cluster has room.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script, and as a submitted job

from egic.errors import UserError, quiet, run_main
from jobs.config import command_line
from jobs.config.flags import flag
from jobs.config.schema import Config
from jobs.training.stage import load_stage

T = TypeVar("T")
STAGES = ("segmentation", "mse-codec", "gan", "orp", "evaluate")
GROUPS = (("segmentation", "mse-codec"), ("gan",), ("orp",), ("evaluate",))
"""Stages of a group do not depend on each other."""


@dataclass(frozen=True, kw_only=True)
class Pipeline(Config):
    """A preset's configuration, and which of its stages to run."""

    start: Annotated[str, flag("from")] = STAGES[0]
    """First stage to run; the ones before it must be finished: segmentation, mse-codec, gan, orp or evaluate. Default:
    all stages."""
    until: str = STAGES[-1]
    """Last stage to run. Of the others, those run that it starts from. Default: all stages."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, stage in (("from", self.start), ("until", self.until)):
            if stage not in STAGES:
                raise UserError(f"--{name} {stage} is no stage; choose one of {', '.join(STAGES)}")
        if STAGES.index(self.start) > STAGES.index(self.until):
            raise UserError(f"--from {self.start} comes after --until {self.until}")

    @property
    def wanted(self) -> tuple[str, ...]:
        """The stages to look at, in order: `until` and all that it starts from, directly or not."""
        needed, todo = set(), [self.until]
        while todo:
            needed.add(name := todo.pop())
            todo += ("orp",) if name == "evaluate" else load_stage(name).parents
        return tuple(name for name in STAGES if name in needed)


def start(argv: Sequence[str] | None = None) -> None:
    """Read the command line, and do what it says."""
    told = command_line.read(Pipeline, argv, prog="full.py", actions=(command_line.DRY_RUN, command_line.STATUS))
    if told.action == command_line.DRY_RUN:
        from jobs.commands import dry_run

        print(dry_run.text(told.config, told.config.wanted))
    elif told.action == command_line.STATUS:
        from jobs.commands import status

        print(status.text(told.config, told.config.wanted))
    else:
        main(told.name, told.config)


def main(preset: str, config: Pipeline) -> None:
    """Run the pipeline and print its table; the last line is the path of summary.json."""
    from jobs.cluster import forks

    began = time.perf_counter()
    forks.start()
    from jobs.cluster.start import interruptible, start_ray
    from jobs.prepare import find_prepared
    from jobs.storage import files
    from jobs.tracking import runs
    from jobs.training import reuse_or_train
    from jobs.training.num_categories import open_fitted

    files.check(config.output, writable=True)
    lpips = reuse_or_train.find_lpips(config) if "gan" in config.wanted else ("", None)
    fitted = in_background(lambda: open_fitted(config, config.wanted))
    store = in_background(lambda: runs.experiment_id(config.experiment))  # making an sqlite file takes seconds
    ready = files.is_remote(config.data) or find_prepared(config.data, config.output)
    with suppress(TimeoutError):  # a wrong place is told before Ray starts, and finished stages do without it
        fitted.result(timeout=None if ready else 0.5)
    if not fitted.done():  # data is being made: there will be stages to train
        start_ray()
    (config, manifests), _ = fitted.result(), store.result()
    run_id = runs.start_pipeline(preset, {"preset": preset, "config": config}, {}, experiment=config.experiment)
    with runs.ending(run_id), ThreadPoolExecutor(2) as pool, interruptible(config.compute.grace_s):
        rows = run_stages(config, manifests, lpips, run_id, pool)
    took = time.perf_counter() - began
    between = 1 - busy_s(rows) / took
    summary = {"preset": preset, "run_id": run_id, "time_s": took, "between_steps": between, "lpips": lpips[0]}
    summary["stages"] = rows
    path = files.join(files.absolute(config.output), "summary.json")
    files.write(path, (json.dumps(summary, indent=2) + "\n").encode())
    print(table(rows))
    if "random" in lpips[0]:
        print(f"* LPIPS ran on a {lpips[0]}: its values compare with nothing; give --lpips-weights FILE for real ones")
    for row in rows:
        if row["stage"] == "evaluate":
            print("PSNR of files: " + ", ".join(f"{v:.2f} dB at alpha {alpha}" for alpha, v in row["psnr_db"].items()))
            print(f"picture to look at: {row['sheet']}")
    print(f"curves, pictures and models: {mlflow_page(config.experiment)}")
    print(f"took {took:.0f} s, {100 * between:.0f} % of it between the steps (starting, checkpoints, MLflow)")
    print(path)


def run_stages(config: Pipeline, manifests: dict, lpips: tuple, run_id: str, pool: ThreadPoolExecutor) -> list[dict]:
    """One summary row per wanted stage. Independent stages overlap when the cluster can place both."""
    from jobs.cluster.start import check_resources, stages_side_by_side, start_ray
    from jobs.evaluation import evaluation
    from jobs.training.reuse_or_train import Work, reuse_stage, train_stage

    done: dict[str, Any] = {}  # Outcome, or evaluation's facts
    walls: dict[str, float] = {}

    def work_of(name: str) -> Work:
        stage = load_stage(name)
        parents = {p: done[p].artifact for p in stage.parents}
        return Work(stage=stage, config=config, parents=parents, manifests=manifests, lpips=lpips)

    def timed(name: str, call: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = call()
        walls[name] = time.perf_counter() - began
        return result

    rows = []
    for group in GROUPS:
        names = [n for n in group if n in config.wanted]
        works, size = {n: work_of(n) for n in names if n != "evaluate"}, 1
        done |= {n: found for n, w in works.items() if (found := timed(n, partial(reuse_stage, w, run_id)))}
        if missing := [n for n in works if n not in done]:  # evaluation starts Ray by itself, if it must
            check_may_train(missing, config.start)
            start_ray()
            check_resources(config.compute)
            size = min(len(names), 2, stages_side_by_side(config.compute))
        for part in (names[i : i + size] for i in range(0, len(names), size)):
            calls: dict[str, Callable[[], Any]] = {
                n: partial(train_stage, works[n], run_id, len(part)) for n in part if n in missing
            }
            if "evaluate" in part:
                orp, val = done["orp"].artifact, manifests["val"]
                calls["evaluate"] = partial(evaluation.run, config, orp, val, parent_run=run_id)
            futures = {n: pool.submit(timed, n, call) for n, call in calls.items()}
            wait(futures.values())
            done |= {n: f.result() for n, f in futures.items()}
        rows += [row_of(n, done[n]) | {"wall_s": walls[n]} for n in names]
    return rows


def check_may_train(missing: Sequence[str], start: str) -> None:
    """Raise UserError for a stage that is not finished and comes before the one to start from."""
    for name in missing:
        if STAGES.index(name) < STAGES.index(start):
            raise UserError(
                f"{name} is not finished with this configuration, code and data; start --from {name} or earlier"
            )


def in_background(work: Callable[[], T]) -> "Future[T]":
    """Do it in a thread that does not keep an interrupted program from ending."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def wait(futures: Collection[Future]) -> None:
    """Until all are done, open to signals. Raises at once what one raises; when told to stop, lets all finish."""
    from jobs.cluster.start import stopping

    while not all(f.done() for f in futures):
        for f in futures:
            if f.done() and not stopping.is_set():
                f.result()
        time.sleep(0.1)


def row_of(name: str, result) -> dict:
    """One stage's line of the table."""
    from jobs.storage import files

    if name == "evaluate":
        psnr = {k.removeprefix("psnr_db_alpha_"): v for k, v in result.items() if k.startswith("psnr_db_alpha_")}
        return {
            "stage": name,
            "steps": result["num_pictures"],
            "time_s": result["time_s"],
            "busy_s": 0.0 if result["reused"] else result["busy_s"],
            "images_per_s": result["num_pictures"] / result["time_s"],
            "headline": f"{result['bpp']:.3f} bpp, {list(psnr.values())[-1]:.2f} dB",
            "psnr_db": psnr,
            "run_id": result["run_id"],
            "reused": result["reused"],
            "sheet": files.join(result["folder"], "sheet.png"),
        }
    facts, stage = result.provenance, load_stage(name)
    busy = 0.0 if result.reused else facts["time_s"] + facts["validation_s"]
    metric = stage.headline
    headline = f"{metric} {facts['metrics'][metric]:.4g}"
    if "random" in facts["lpips"] and "lpips" in metric:
        headline += " *"
    return {
        "stage": name, "steps": facts["steps"], "time_s": facts["time_s"], "busy_s": busy,
        "images_per_s": facts["steps"] * facts["batch"] / max(facts["time_s"], 1e-9), "headline": headline,
        "metrics": {k: v for k, v in facts["metrics"].items() if k.startswith("val/")},
        "run_id": result.artifact.run_id, "model": f"egic-{name} version {result.artifact.model_version}",
        "sha256": result.artifact.sha256, "reused": result.reused,
    }  # fmt: skip


def busy_s(rows: list[dict]) -> float:
    """Seconds that this run spent on data, steps and validation; of stages side by side, those of the longest."""
    busy = {row["stage"]: row["busy_s"] for row in rows}
    return sum(max(busy.get(name, 0.0) for name in group) for group in GROUPS)


def table(rows: list[dict]) -> str:
    """The rows as aligned text that fits a terminal; run ids are cut, summary.json has them whole."""
    head = ("stage", "steps", "time", "images/s", "headline metric", "run", "")
    lines = [head] + [
        (r["stage"], str(r["steps"]), clock(r["time_s"]), f"{r['images_per_s']:.1f}", r["headline"], r["run_id"][:8],
         "reused" if r["reused"] else "trained" if r["stage"] != "evaluate" else "evaluated")
        for r in rows
    ]  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def clock(time_s: float) -> str:
    """Hours, minutes and seconds."""
    return f"{int(time_s) // 3600}:{int(time_s) // 60 % 60:02d}:{int(time_s) % 60:02d}"


def mlflow_page(experiment: str) -> str:
    """How to see the runs: MLflow's own page would open on prompts and traces."""
    from jobs.tracking import runs

    page = f"#/experiments/{runs.experiment_id(experiment)}/runs?workflowType=machine_learning"
    uri = runs.tracking_uri()
    if uri.startswith("sqlite"):
        return f"mlflow ui --backend-store-uri {uri}\nthen open http://127.0.0.1:5000/{page}"
    return f"{runs.shown_uri().rstrip('/')}/{page}"


if __name__ == "__main__":
    quiet("jobs")
    raise SystemExit(run_main(start))
