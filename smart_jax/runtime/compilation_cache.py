"""jax's persistent compilation cache in the user's cache folder: the second run of a program starts at once."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import jax

VARIABLE = "SMART_JAX_COMPILATION_CACHE"
LEAST_SECONDS = 0.1  # of compiling a program, for it to be kept
_JAX_VARIABLE = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
_OFF = ("off", "0", "false", "no")


def enable(folder: str | Path | None = None) -> Path | None:
    """Keeps compiled programs in `folder`; returns it, or None if it is switched off or cannot be written.

    `smart_jax.load` and all commands do this. The environment variable SMART_JAX_COMPILATION_CACHE has the last word:
    "off", or a folder. Without it and without `folder`, jax's own settings (JAX_COMPILATION_CACHE_DIR,
    JAX_ENABLE_COMPILATION_CACHE) are left as they are, and else the cache is $XDG_CACHE_HOME/smart_jax/xla
    (~/.cache/smart_jax/xla). Any number of processes may share it; deleting the folder empties it.

    Example:
      >>> folder = enable("off")
    """
    chosen = os.environ.get(VARIABLE) or folder
    if str(chosen).lower() in _OFF or not jax.config.jax_enable_compilation_cache:  # type: ignore[attr-defined]
        return None
    if chosen is None and (own := jax.config.jax_compilation_cache_dir):  # type: ignore[attr-defined]
        return Path(own)
    path = Path(chosen) if chosen else _user_cache() / "smart_jax" / "xla"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None  # a read-only home: everything works, only slower
    if not os.access(path, os.W_OK):
        return None
    # An entry that another process is writing, or was killed at, cannot be read: the program is compiled again.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache entry")
    jax.config.update("jax_compilation_cache_dir", str(path))
    if _JAX_VARIABLE not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    return path


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
