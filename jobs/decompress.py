""".egic files -> pictures, on Ray: `python -m jobs.decompress IN [IN ...] OUT [--alpha A]`, as `jobs.compress`."""

from dataclasses import dataclass
from typing import Annotated

from egic.cli.coding import check_alpha
from egic.errors import quiet, run_main
from jobs.config.flags import alias, metavar, parse_config


@dataclass(frozen=True, kw_only=True)
class Decompression:
    """Decompress .egic files into PNGs with the same relative names, on all cores or GPUs of a Ray cluster.

    Run again, the command decodes the files that are missing. OUT/index has a row per picture."""

    places: Annotated[tuple[str, ...], metavar("IN [IN ...] OUT")]
    """Folders with .egic files at any depth, or single files; then the folder for the pictures: a new or empty one, or
    that of an earlier run. Both can be s3://bucket/folder or gs://bucket/folder."""
    alpha: float | None = None
    """0 most faithful ... 1 most realistic. Default: 1; needs a model with ORP head."""
    model: Annotated[str | None, alias("-m")] = None
    """The model that made the files: artifact folder, models:/egic-orp@best (needs egic[train]), or hf://owner/name
    (needs egic[hub]). Default: the model of this package."""
    workers: int = 0
    """Processes that decompress, each with one core; on a cluster with GPUs they share these. Default: as many as the
    cluster has cores now, at most four per GPU."""


def main() -> None:
    """Read the command line and decompress."""
    quiet("jobs")

    def decompress() -> int:
        asked = parse_config(Decompression, prog="python -m jobs.decompress")
        check_alpha(asked.alpha)
        options = {} if asked.alpha is None else {"alpha": asked.alpha}
        from jobs.archive.archive import archive_of, run  # not for --help: Ray takes seconds

        return run(archive_of("decompress", asked.places, options, asked.model, asked.workers))

    raise SystemExit(run_main(decompress))


if __name__ == "__main__":
    main()
