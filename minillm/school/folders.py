"""Where minillm keeps what is expensive to make again: trained models."""

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """Where trained models are kept: MINILLM_CACHE, or the user's cache folder."""
    chosen = os.environ.get("MINILLM_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local or Path.home() / "AppData" / "Local") / "minillm" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "minillm"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "minillm"
