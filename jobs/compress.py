"""Any number of pictures -> .egic files, on Ray: `python -m jobs.compress IN [IN ...] OUT [--quality Q]`.

IN and OUT are folders, s3://bucket/folder or gs://bucket/folder; IN may be a file. Needs egic[ray] only.
"""

from dataclasses import dataclass
from typing import Annotated

from egic.cli.coding import rate_of
from egic.errors import quiet, run_main
from jobs.config.flags import alias, metavar, parse_config


@dataclass(frozen=True, kw_only=True)
class Compression:
    """Compress pictures into .egic files with the same relative names, on all cores or GPUs of a Ray cluster.

    Run again, the command codes the pictures that are missing. OUT/index has a row per picture."""

    places: Annotated[tuple[str, ...], metavar("IN [IN ...] OUT")]
    """Folders with pictures at any depth, or single pictures; then the folder of the archive: a new or empty one, or
    that of an earlier run. Both can be s3://bucket/folder or gs://bucket/folder."""
    quality: int | None = None
    """0 (the smallest file) to 100. Default: 50."""
    bpp: float | None = None
    """The best quality with at most this many bits per pixel: 0.2."""
    max_bytes: str | None = None
    """The best quality with at most this many bytes: 20kB, 0.1MB."""
    model: Annotated[str | None, alias("-m")] = None
    """Artifact folder, models:/egic-orp@best (needs egic[train]), or hf://owner/name (needs egic[hub]). Default: the
    model of this package."""
    workers: int = 0
    """Processes that compress, each with one core; on a cluster with GPUs they share these. Default: as many as the
    cluster has cores now, at most four per GPU."""


def main() -> None:
    """Read the command line and compress."""
    quiet("jobs")

    def compress() -> int:
        asked = parse_config(Compression, prog="python -m jobs.compress")
        rate = rate_of(asked.quality, asked.bpp, asked.max_bytes)
        from jobs.archive.archive import archive_of, run  # not for --help: Ray takes seconds

        return run(archive_of("compress", asked.places, rate, asked.model, asked.workers))

    raise SystemExit(run_main(compress))


if __name__ == "__main__":
    main()
