"""The user's cache folder: what it holds can be made again."""

import os
from pathlib import Path


def folder() -> Path:
    """Need not exist yet; where XDG's base directory specification says."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "triton-model-zoo"
