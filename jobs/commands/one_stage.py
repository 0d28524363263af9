"""One stage from the command line: `python -m jobs.gan workstation --init-from models:/egic-mse-codec@best ...`."""

from dataclasses import dataclass

from egic.artifact import read_config
from egic.errors import UserError, quiet, run_main
from jobs.config import command_line
from jobs.config.schema import Config
from jobs.storage import files
from jobs.tracking import model_registry, runs
from jobs.tracking.model_registry import Artifact, local_copy
from jobs.training.stage import MODULES, Stage, load_stage


@dataclass(frozen=True, kw_only=True)
class StageConfig(Config):
    """A preset's configuration for one stage alone."""

    init_from: tuple[str, ...] = ()
    """Artifacts to start from: folders, models:/egic-mse-codec@best, models:/name/3 or runs:/ID. Default: none; stages
    that start from others ask for them."""


def main(name: str, argv: list[str] | None = None) -> None:
    """`python -m jobs.<stage> PRESET [--init-from REF ...] [--data FOLDER]`: one stage, outside a pipeline."""
    quiet("jobs")
    raise SystemExit(run_main(lambda: start(name, argv)))


def start(name: str, argv: list[str] | None) -> None:
    """Read the command line, and run the action it selects."""
    note = f"This command runs {name} alone: the flags of other stages have no effect."
    command = command_line.read(
        StageConfig, argv, prog=f"python -m {MODULES[name]}", actions=(command_line.DRY_RUN,), note=note
    )
    if command.action == command_line.DRY_RUN:
        from jobs.commands import dry_run

        print(dry_run.text(command.config, (name,)))
    else:
        run_alone(name, command.config)


def run_alone(name: str, config: StageConfig) -> None:
    """Train the stage from the artifacts that `init_from` names, or reuse it; prints the result."""
    from jobs.cluster.shutdown import interruptible  # Ray takes seconds to import: not to print a configuration
    from jobs.training.num_categories import check_parent, open_fitted
    from jobs.training.reuse_or_train import StageInputs, find_lpips, reuse_stage, train_stage

    stage = load_stage(name)
    files.check(config.output, writable=True)
    lpips = find_lpips(config, (name,))
    parents = named_parents(stage, config)
    config, manifests = open_fitted(config, (name,))
    for artifact in parents.values():
        check_parent(config, name, artifact.uri, local_copy(artifact, config.output))
    with interruptible(config.compute.grace_s, runs.interrupt):
        inputs = StageInputs(stage=stage, config=config, parents=parents, manifests=manifests, lpips=lpips)
        done = reuse_stage(inputs) or train_stage(inputs)
    metrics = done.provenance["metrics"]
    print(f"{name}: {stage.headline} {metrics[stage.headline]:.4g} after {done.provenance['steps']} steps", end="")
    print(f" ({'reused' if done.reused else 'trained'}), models:/egic-{name}/{done.artifact.model_version}")
    print(done.folder.absolute())


def named_parents(stage: Stage, config: StageConfig) -> dict[str, Artifact]:
    """Artifacts of `--init-from` by the name of the stage that made them."""
    found = {}
    for ref in config.init_from:
        artifact = model_registry.resolve(ref)
        folder = local_copy(artifact, config.output)
        read_config(folder)  # raises UserError if the folder is not an artifact
        made_by = model_registry.stage_of(folder)
        if made_by in found:
            raise UserError(f"--init-from names two artifacts of {made_by}; give one")
        found[made_by] = artifact
    if not found and stage.parents:
        wanted = " ".join(f"models:/egic-{p}@best" for p in stage.parents)
        raise UserError(f"{stage.name} starts from other stages; give --init-from {wanted}, or folders")
    return found
