#!/usr/bin/env python3
"""The whole pipeline: trains a codec, whose files decode at any alpha, on COCO pictures and panoptic masks.

    python pipelines/full.py tiny
    ray job submit --working-dir . -- python pipelines/full.py paper --data /shared/coco --output /shared/egic

Stages that are finished with the same configuration, code, parents and data are reused. The others run, in parallel if
they do not depend on each other and the cluster has resources for both. The stages are jobs/segmentation.py,
jobs/mse_codec.py, jobs/gan.py, jobs/orp.py and jobs/evaluate.py.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script, and as a submitted job

from egic.errors import UserError, quiet, run_main
from jobs.config import command_line
from jobs.config.flags import flag
from jobs.config.schema import Config
from jobs.training.stage import EVALUATE, MEASURED, STAGES, groups, load_stage

if TYPE_CHECKING:  # Ray and MLflow take seconds to import, and --help and --print-config do not need them
    from jobs.data.shards import Manifest
    from jobs.training.reuse_or_train import Lpips, Outcome, StageInputs

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Pipeline(Config):
    """A preset's configuration, and which of its stages to run."""

    start: Annotated[str, flag("from")] = STAGES[0]
    """First stage to run: segmentation, mse-codec, gan, orp or evaluate. The stages before it must be finished.
    Default: all stages."""
    until: str = STAGES[-1]
    """Last stage to run. The stages that it depends on run, too. Default: all stages."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, stage in (("from", self.start), ("until", self.until)):
            if stage not in STAGES:
                raise UserError(f"--{name} {stage} is not a stage; choose one of {', '.join(STAGES)}")
        if STAGES.index(self.start) > STAGES.index(self.until):
            raise UserError(f"--from {self.start} comes after --until {self.until}")

    @property
    def wanted(self) -> tuple[str, ...]:
        """`until` and all stages that it depends on, directly or indirectly, in order."""
        return tuple(name for group in groups(self.until) for name in group)


def start(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and run the pipeline, or print its dry run or status."""
    command = command_line.read(Pipeline, argv, prog="full.py", actions=(command_line.DRY_RUN, command_line.STATUS))
    if command.action == command_line.DRY_RUN:
        from jobs.commands import dry_run

        print(dry_run.text(command.config, command.config.wanted))
    elif command.action == command_line.STATUS:
        from jobs.commands import status

        print(status.text(command.config, command.config.wanted))
    else:
        main(command.name, command.config)


def main(preset: str, config: Pipeline) -> None:
    """Run the pipeline and print its table; the last line is the path of summary.json."""
    began = time.perf_counter()
    from jobs.cluster.shutdown import interruptible
    from jobs.commands import summary
    from jobs.storage import files
    from jobs.tracking import runs
    from jobs.training.reuse_or_train import find_lpips

    files.check(config.output, writable=True)
    lpips = find_lpips(config, config.wanted)
    config, manifests = open_inputs(config)

    run_id = runs.start_pipeline(preset, {"preset": preset, "config": config}, {}, experiment=config.experiment)
    with runs.ending(run_id), interruptible(config.compute.grace_s, runs.interrupt):
        rows = run_stages(config, manifests, lpips, run_id)

    found = summary.summarise(preset, run_id, rows, time.perf_counter() - began, lpips.name)
    path = files.join(files.absolute(config.output), summary.NAME)
    files.write(path, (json.dumps(found, indent=2) + "\n").encode())
    print(summary.text(found, config.experiment))
    print(path)


def open_inputs(config: Pipeline) -> tuple[Pipeline, "Mapping[str, Manifest]"]:
    """The configuration with the data's number of categories, and the manifests of train and val.

    Preparing the data, creating MLflow's database and starting Ray take seconds each, so they run in parallel.
    Raises UserError for data that the wanted stages cannot use, before Ray or MLflow are started.
    """
    from jobs.cluster.shutdown import in_background
    from jobs.cluster.start import start_ray
    from jobs.data.datasets import find_prepared
    from jobs.storage import files
    from jobs.tracking import store
    from jobs.training.num_categories import check_data, open_fitted

    check_data(config, config.wanted)
    data = in_background(lambda: open_fitted(config, config.wanted))
    database = in_background(lambda: store.experiment_id(config.experiment))
    prepared = files.is_remote(config.data) or find_prepared(config.data, config.output)
    if not prepared:  # no stage can be finished with this data, so Ray will be needed
        start_ray()
    database.result()
    return data.result()


def run_stages(config: Pipeline, manifests: "Mapping[str, Manifest]", lpips: "Lpips", run_id: str) -> list[dict]:
    """Run the wanted stages in order, and return the rows of the summary."""
    from jobs.commands import summary
    from jobs.evaluation import evaluation
    from jobs.training.reuse_or_train import StageInputs

    done: dict[str, Outcome] = {}
    rows = []
    for group in groups(config.until):
        if group == (EVALUATE,):
            began = time.perf_counter()
            found = evaluation.run(config, done[MEASURED].artifact, manifests["val"], parent_run=run_id)
            rows.append(summary.evaluation_row(found, time.perf_counter() - began))
            continue
        inputs = []
        for stage in map(load_stage, group):
            parents = {name: done[name].artifact for name in stage.parents}
            inputs.append(StageInputs(stage=stage, config=config, parents=parents, manifests=manifests, lpips=lpips))
        for outcome in run_group(inputs, config, run_id):
            done[outcome.stage] = outcome
            rows.append(summary.stage_row(outcome))
    return rows


def run_group(inputs: "Sequence[StageInputs]", config: Pipeline, run_id: str) -> "list[Outcome]":
    """Reuse the finished ones of stages that do not depend on each other, train the others; returns all outcomes."""
    from jobs.training.reuse_or_train import reuse_stage, train_side_by_side

    outcomes = {each.stage.name: reuse_stage(each, run_id) for each in inputs}
    missing = [each for each in inputs if outcomes[each.stage.name] is None]
    check_may_train([each.stage.name for each in missing], config.start)
    for outcome in train_side_by_side(missing, run_id):
        outcomes[outcome.stage] = outcome
    return [outcome for outcome in outcomes.values() if outcome is not None]


def check_may_train(missing: Sequence[str], start: str) -> None:
    """Raise UserError for an unfinished stage that comes before the one to start from."""
    for name in missing:
        if STAGES.index(name) < STAGES.index(start):
            raise UserError(
                f"{name} is not finished with this configuration, code and data; start --from {name} or earlier"
            )


if __name__ == "__main__":
    quiet("jobs")
    raise SystemExit(run_main(start))
