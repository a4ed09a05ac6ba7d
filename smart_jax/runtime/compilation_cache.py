"""jax's persistent compilation cache in the user's cache folder: the second run of a command starts at once."""

from __future__ import annotations

import os
from pathlib import Path

import jax

VARIABLE = "SMART_JAX_COMPILATION_CACHE"
_OFF = ("off", "0", "false", "no")


def enable(folder: str | Path | None = None) -> Path | None:
    """Keeps compiled programs in `folder`; returns it, or None if it is switched off or cannot be written.

    The environment variable SMART_JAX_COMPILATION_CACHE has the last word: "off", or a folder. Without it and without
    `folder`, jax's own JAX_COMPILATION_CACHE_DIR is left as it is, and else the cache is
    $XDG_CACHE_HOME/smart_jax/xla (~/.cache/smart_jax/xla).

    Example:
      >>> folder = enable("off")
    """
    chosen = os.environ.get(VARIABLE) or folder
    if str(chosen).lower() in _OFF:
        return None
    if chosen is None and (own := jax.config.jax_compilation_cache_dir):  # type: ignore[attr-defined]
        return Path(own)
    path = Path(chosen) if chosen else _user_cache() / "smart_jax" / "xla"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None  # a read-only home: everything works, only slower
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    return path


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
