"""The summary at the end of a pipeline: summary.json, and a table on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from jobs.storage import files
from jobs.tracking import store
from jobs.training.reuse_or_train import Outcome
from jobs.training.stage import EVALUATE, groups, load_stage

HEAD = ("stage", "steps", "time", "images/s", "headline metric", "run", "")
NAME = "summary.json"


def stage_row(outcome: Outcome) -> dict[str, Any]:
    """The entry of summary.json for a trained or reused stage. `busy_s`: seconds of this run spent in its steps
    (those of all attempts, if earlier ones were interrupted, but at most its duration)."""
    facts, stage = outcome.provenance, load_stage(outcome.stage)
    headline = f"{stage.headline} {facts['metrics'][stage.headline]:.4g}"
    if "random" in facts["lpips"] and "lpips" in stage.headline:
        headline += " *"
    return {
        "stage": stage.name,
        "steps": facts["steps"],
        "time_s": facts["time_s"],
        "busy_s": 0.0 if outcome.reused else min(facts["time_s"] + facts["validation_s"], outcome.wall_s),
        "wall_s": outcome.wall_s,
        "images_per_s": facts["steps"] * facts["batch"] / max(facts["time_s"], 1e-9),
        "headline": headline,
        "metrics": {k: v for k, v in facts["metrics"].items() if k.startswith("val/")},
        "run_id": outcome.artifact.run_id,
        "model": f"models:/egic-{stage.name}/{outcome.artifact.model_version}",
        "sha256": outcome.artifact.sha256,
        "reused": outcome.reused,
    }


def evaluation_row(found: Mapping[str, Any], wall_s: float) -> dict[str, Any]:
    """The entry of summary.json for the evaluation. found: the result of `jobs.evaluation.evaluation.run`."""
    psnr = {k.removeprefix("psnr_db").replace("_", " ").strip(): v for k, v in found.items() if k.startswith("psnr_db")}
    return {
        "stage": EVALUATE,
        "steps": found["num_pictures"],
        "time_s": found["time_s"],
        "busy_s": 0.0 if found["reused"] else found["busy_s"],
        "wall_s": wall_s,
        "images_per_s": found["num_pictures"] / found["time_s"],
        "headline": f"{found['bpp']:.3f} bpp, {list(psnr.values())[-1]:.2f} dB",
        "psnr_db": psnr,
        "run_id": found["run_id"],
        "reused": found["reused"],
        "sheet": files.join(found["folder"], "sheet.png"),
    }


def summarise(preset: str, run_id: str, rows: list[dict], time_s: float, lpips: str) -> dict[str, Any]:
    """The content of summary.json. `between_steps`: share of the time outside of steps and validation."""
    busy = {row["stage"]: row["busy_s"] for row in rows}
    in_steps = sum(max(busy.get(name, 0.0) for name in group) for group in groups())  # concurrent: the longest
    return {
        "preset": preset,
        "run_id": run_id,
        "time_s": time_s,
        "between_steps": 1 - in_steps / time_s,
        "lpips": lpips,
        "stages": rows,
    }


def text(summary: Mapping[str, Any], experiment: str) -> str:
    """The summary for the terminal: a table, the PSNR of each alpha, and where to find pictures and curves."""
    rows, lpips = summary["stages"], summary["lpips"]
    lines = [table(rows)]
    if "random" in lpips:
        lines += [f"* LPIPS used a {lpips}: do not compare its values; give --lpips-weights FILE for real ones"]
    for row in rows:
        if row["stage"] == EVALUATE:
            values = (f"{v:.2f} dB at {point}" if point else f"{v:.2f} dB" for point, v in row["psnr_db"].items())
            lines += ["PSNR of files: " + ", ".join(values)]
            lines += [f"picture to look at: {row['sheet']}"]
    codecs = [
        row["model"] for row in rows if row["stage"] != EVALUATE and "codec" in load_stage(row["stage"]).publishes
    ]
    if codecs:
        lines += [f"to use the codec: egic compress photo.jpg -m {codecs[-1]}"]
    lines += [f"curves, pictures and models: {mlflow_page(experiment)}"]
    share = f"{100 * summary['between_steps']:.0f} %"
    lines += [f"took {summary['time_s']:.0f} s, {share} of it between the steps (starting, checkpoints, MLflow)"]
    return "\n".join(lines)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table that fits 80 columns. Run ids are cut to 8 digits; summary.json has all of them."""
    cells = []
    for r in rows:
        speed = f"{r['images_per_s']:.1f}"
        cells.append((r["stage"], r["steps"], clock(r["time_s"]), speed, r["headline"], r["run_id"][:8], made(r)))
    return tabulate([HEAD, *cells], tablefmt="plain", disable_numparse=True)


def made(row: Mapping[str, Any]) -> str:
    """How this run got a stage's result: trained, evaluated or reused."""
    if row["reused"]:
        return "reused"
    return "evaluated" if row["stage"] == EVALUATE else "trained"


def clock(time_s: float) -> str:
    """Hours, minutes and seconds, as in 1:02:03."""
    return f"{int(time_s) // 3600}:{int(time_s) // 60 % 60:02d}:{int(time_s) % 60:02d}"


def mlflow_page(experiment: str) -> str:
    """The page of MLflow that lists the training runs, since its start page lists prompts and traces."""
    page = f"#/experiments/{store.experiment_id(experiment)}/runs?workflowType=machine_learning"
    uri = store.tracking_uri()
    if uri.startswith("sqlite"):
        return f"mlflow ui --backend-store-uri {uri}\nthen open http://127.0.0.1:5000/{page}"
    return f"{store.shown_uri().rstrip('/')}/{page}"
