"""Compiled programs of a function, of which there are not ever more, whatever shapes it is asked for."""

from __future__ import annotations

import functools
from typing import Any

from smart_jax.runtime.forked import refuse_after_fork

MOST = 64  # of one function; the next has all of them forgotten, and those that are asked for again compiled again


def bounded(program: Any, most: int = MOST) -> Any:
    """Returns a function of `jax.jit` that keeps at most so many compiled programs.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> double = bounded(jax.jit(lambda x: 2 * x), most=2)
      >>> [double(np.ones(size)).shape for size in range(1, 6)]
      [(1,), (2,), (3,), (4,), (5,)]
      >>> double.programs()
      1
    """

    @functools.wraps(program)
    def run(*arguments: Any, **options: Any) -> Any:
        refuse_after_fork()
        if program._cache_size() >= most:
            program.clear_cache()
        return program(*arguments, **options)

    run.programs = program._cache_size  # type: ignore[attr-defined]
    run.lower, run.trace = program.lower, program.trace  # type: ignore[attr-defined]
    run.clear_cache = program.clear_cache  # type: ignore[attr-defined]
    return run
