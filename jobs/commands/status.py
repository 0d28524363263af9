"""`--status`: which stages are finished, running, interrupted or never run, and the changes since their last run.

Reads MLflow and the output folder. It starts nothing, downloads nothing, and does not create an MLflow store.
"""

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tabulate import tabulate

from egic.metrics.pretrained import backbone_name
from jobs.config.schema import Config
from jobs.data.datasets import find_data
from jobs.data.shards import Manifest
from jobs.storage import files, lease
from jobs.storage.files import Folder
from jobs.tracking import model_registry
from jobs.tracking.model_registry import Artifact
from jobs.tracking.runs import flatten, runs_of
from jobs.tracking.store import client, experiment_id, sqlite_path, tracking_uri
from jobs.training import checkpoints, code_version
from jobs.training.encoder import with_encoder
from jobs.training.num_categories import expected, learning_labels
from jobs.training.stage import EVALUATE, MEASURED, ingredients, load_stage, sources, stage_key

HEAD = ("stage", "state", "key", "run", "artifact")
OTHERS = ("key", "code", "data", "lpips")
"""Parameters of a stage's run that are not settings of the stage."""


@dataclass(kw_only=True)
class StageStatus:
    """Whether a stage is finished, running, interrupted or never run, and what differs from its last run."""

    stage: str
    state: str = "never run"
    key: str = ""
    """Empty while it is unknown, because a parent must be trained first."""
    run_id: str = ""
    artifact: Artifact | None = None
    why: list[str] = field(default_factory=list)
    """Why it would run: the stages it waits for, and the changes since its newest run."""


def states(config: Config, names: Sequence[str]) -> list[StageStatus]:
    """The stages in order. Raises UserError when MLflow's store or the data cannot be read."""
    manifests = find_data(config.data, config.output)
    config = expected(config, manifests, names)
    if learning_labels(names):
        config = with_encoder(config)
    found: dict[str, StageStatus] = {}
    known = store_exists(config.experiment)
    for name in names:
        done = {k: s.artifact for k, s in found.items() if s.artifact}
        if name == EVALUATE:
            found[name] = state_of_evaluation(config, manifests, done.get(MEASURED), known)
        else:
            found[name] = state_of_stage(name, config, manifests, done, known)
    return list(found.values())


def store_exists(experiment: str) -> bool:
    """Whether MLflow has the experiment, checked without creating it."""
    path = sqlite_path(tracking_uri())
    if path and not path.exists():
        return False
    return client().get_experiment_by_name(experiment) is not None


def state_of_stage(
    name: str, config: Config, manifests: Mapping[str, Manifest], done: Mapping[str, Artifact], known: bool
) -> StageStatus:
    """Status of a stage that trains. done: artifacts of earlier stages. known: whether MLflow has the experiment."""
    stage, state = load_stage(name), StageStatus(stage=name)
    waits = [p for p in stage.parents if p not in done]
    data = f"{manifests['train'].digest} {manifests['val'].digest}" if manifests else ""
    parents = {p: done[p].sha256 for p in stage.parents if p in done}
    lpips = backbone_name(config.lpips_weights, config.lpips_net) if "lpips_weights" in stage.reads else ""
    facts = ingredients(stage, config, parents=parents, data=data, lpips=lpips)
    if waits:
        state.why.append(f"waits for {' and '.join(waits)}")
    if not data:
        state.why.append("the data is not prepared yet")
    if not waits and data:
        state.key = stage_key(facts)
        if known and (artifact := model_registry.find_finished(name, state.key, experiment=config.experiment)):
            return StageStatus(stage=name, state="finished", key=state.key, run_id=artifact.run_id, artifact=artifact)
        runs = runs_of(name, state.key, experiment=config.experiment) if known else []
        state.run_id = runs[0].info.run_id if runs else ""
        place = checkpoints.place_of(config.output, f"{name}-{state.key}")
        state.state = progress(place, bool(runs))
        if runs and runs[0].info.status == "FINISHED":
            state.state = "finished, but its artifact is gone"
    if not state.run_id and known:
        state.why += differences(name, config.experiment, facts)
    return state


def progress(place: Folder, started: bool) -> str:
    """The progress of an unfinished stage, from its folder of checkpoints."""
    steps = {name: step for name, step in checkpoints.steps_of(place).items() if step is not None}
    newest = max(steps, key=lambda name: steps[name], default="")
    where = f"at step {steps[newest]}, {place.path}/{newest}" if newest else "before its first checkpoint"
    if lease.is_held(place):
        return f"running, last checkpoint {where}" if newest else f"running, {where}"
    return f"interrupted {where}" if newest or started else "never run"


def state_of_evaluation(
    config: Config, manifests: Mapping[str, Manifest], artifact: Artifact | None, known: bool
) -> StageStatus:
    """Status of the evaluation of the ORP stage's artifact."""
    from egic.metrics import measures
    from jobs.evaluation import evaluation

    state = StageStatus(stage=EVALUATE)
    if artifact is None or not manifests:
        state.why.append(f"waits for {MEASURED}")
        return state
    if lacking := measures.missing_networks(config.evaluate.metrics, config.evaluate.weights):
        state.state = "unknown"
        state.why.append(f"depends on weights that are not on this machine yet: {', '.join(lacking)}")
        return state
    job = evaluation.pipeline_job(config, artifact, manifests["val"])
    found = measures.find_measures(config.evaluate.metrics, config.evaluate.weights)
    facts = evaluation.ingredients(job, found, manifests["val"].digest)
    state.key = stage_key(facts)
    runs = runs_of(EVALUATE, state.key, experiment=config.experiment) if known else []
    if runs:
        state.run_id = runs[0].info.run_id
        done = files.exists(files.join(config.output, EVALUATE, state.key, "summary.json"))
        finished = any(run.info.status == "FINISHED" for run in runs)
        state.state = "finished" if done and finished else "interrupted; its measured parts are kept"
        if finished and not done:
            state.state, state.why = "finished elsewhere", [f"its files are not below {config.output}"]
    elif known:
        state.why += differences(EVALUATE, config.experiment, facts)
    return state


def differences(name: str, experiment: str, facts: Mapping[str, Any]) -> list[str]:
    """Messages with the differences between `facts` and the stage's newest run; parents not yet trained are ignored."""
    run = newest_run(name, experiment)
    if run is None:
        return []
    had, tags, found = run.data.params, run.data.tags, []
    now = flatten(facts["config"])
    prefix = "config." if name == EVALUATE else ""
    before = {k.removeprefix(prefix): v for k, v in had.items() if k.startswith(prefix) and k not in OTHERS}
    for key in sorted(now.keys() | before.keys()):
        if now.get(key) != before.get(key):
            found.append(f"{key}: {before.get(key, 'missing')} -> {now.get(key, 'missing')}")
    if had.get("code") != facts["code"]:
        found.append(changed_code(name, tags.get(code_version.TAG)))
    if facts["data"] and had.get("data") != facts["data"]:
        found.append("other data")
    if had.get("lpips", "") != facts.get("lpips", ""):
        found.append(f"LPIPS: {had.get('lpips')} -> {facts['lpips']}")
    for parent, sha256 in facts["parents"].items():
        place = "model" if name == EVALUATE else parent
        if (old := tags.get(f"egic.parent.{place}.sha256")) != sha256:
            found.append(f"another {parent}: {(old or 'none')[:12]} -> {sha256[:12]}")
    return [f"differs from run {run.info.run_id}: " + "; ".join(found)] if found else []


def newest_run(name: str, experiment: str) -> Any | None:
    """The newest run of a stage that was trained here, whatever its status."""
    store = client()
    where, order = f"tags.`egic.stage` = '{name}' and tags.`egic.kind` = 'stage'", ["attributes.start_time DESC"]
    runs = store.search_runs([experiment_id(experiment)], where, order_by=order)
    return next((run for run in runs if "egic.imported" not in run.data.tags), None)


def changed_code(name: str, tag: str | None) -> str:
    """A message with the source files that changed since the run, by the digests in its tag."""
    if tag is None:
        return "other code (the run does not list its files)"
    return "changed: " + ", ".join(code_version.changed_files(tag, sources(name)))


def text(config: Config, names: Sequence[str]) -> str:
    """Table of the stages, and below it why those that are not finished would run."""
    found = states(config, names)
    rows = [(s.stage, short(s.state), s.key or "-", s.run_id[:8] or "-", artifact_text(s)) for s in found]
    lines = [tabulate([HEAD, *rows], tablefmt="plain", disable_numparse=True)]
    for s in found:
        details = [s.state] if short(s.state) != s.state else []
        for detail in details + s.why:
            lines += textwrap.wrap(
                f"{s.stage}: {detail}", 79, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
            )
    return "\n".join(lines)


def short(state: str) -> str:
    """The first word of a state, for the table; details follow below it."""
    return state if state == "never run" else re.split(r"[ ,;]", state)[0]


def artifact_text(state: StageStatus) -> str:
    """A reference for --model and --init-from; `egic models` has the digests."""
    return f"models:/egic-{state.stage}/{state.artifact.model_version}" if state.artifact else "-"
