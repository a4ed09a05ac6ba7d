"""Devices and processes: the mesh, several processes as one, the compilation cache and the compiler's options."""

from smart_jax.runtime import compilation_cache, distributed
from smart_jax.runtime.bounded_programs import bounded, in_one_trace
from smart_jax.runtime.compiler_options import compiler_options
from smart_jax.runtime.distributed import (
    DistributedConfig,
    initialize,
    is_main,
    on_any,
    sum_over_processes,
    wait_for_all,
)
from smart_jax.runtime.forked import refuse_after_fork
from smart_jax.runtime.mesh import (
    AXES,
    BATCH,
    Rules,
    batch_part,
    batch_sharding,
    make_mesh,
    place,
    replicated,
    sharding_for,
    to_host,
)

__all__ = [
    "AXES",
    "BATCH",
    "DistributedConfig",
    "Rules",
    "batch_part",
    "batch_sharding",
    "bounded",
    "compilation_cache",
    "compiler_options",
    "distributed",
    "in_one_trace",
    "initialize",
    "is_main",
    "make_mesh",
    "on_any",
    "place",
    "refuse_after_fork",
    "replicated",
    "sharding_for",
    "sum_over_processes",
    "to_host",
    "wait_for_all",
]
