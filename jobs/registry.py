"""`python -m jobs.registry FOLDER`: register an artifact from elsewhere (imported or downloaded weights) in MLflow."""

from dataclasses import dataclass
from pathlib import Path

from egic.errors import quiet, run_main
from jobs.config.flags import parse_config
from jobs.tracking.model_registry import publish_folder, stage_of


@dataclass(frozen=True, kw_only=True)
class Registration:
    """Register an artifact from elsewhere (imported or downloaded weights) in MLflow."""

    folder: Path
    """The artifact: config.json, provenance.json and safetensors."""


def main() -> None:
    """Register the artifact and print its name in the registry."""
    quiet("jobs")
    folder = parse_config(Registration, prog="python -m jobs.registry").folder

    def register_it() -> None:
        artifact = publish_folder(folder)
        print(f"models:/egic-{stage_of(folder)}/{artifact.model_version}")

    raise SystemExit(run_main(register_it))


if __name__ == "__main__":
    main()
