"""The benchmarks ViDoRe V1, V2 and V3: a table of their sets, and a reader of their layout on the hub."""

from eval.benchmarks.vidore.loader import fetch, load
from eval.benchmarks.vidore.table import (
    DEFAULT_VERSIONS,
    INSTRUCTION,
    SETS,
    VERSIONS,
    VidoreSet,
    find,
    how_to_get,
    select,
    stem,
)

__all__ = [
    "DEFAULT_VERSIONS",
    "INSTRUCTION",
    "SETS",
    "VERSIONS",
    "VidoreSet",
    "fetch",
    "find",
    "how_to_get",
    "load",
    "select",
    "stem",
]
