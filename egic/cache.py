"""The folder where downloaded models and weights are kept between runs."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """EGIC_CACHE, or egic/ in the user's cache folder (XDG_CACHE_HOME, else ~/.cache). The folder may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("EGIC_CACHE") or Path(base) / "egic")
