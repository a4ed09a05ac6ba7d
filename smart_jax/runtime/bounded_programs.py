"""Compiled programs of a function, of which there are not ever more, whatever shapes it is asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax

from smart_jax.runtime.forked import refuse_after_fork

P = ParamSpec("P")
R = TypeVar("R")
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


def in_one_trace(function: Callable[P, R]) -> Callable[P, R]:
    """Returns a function for `jax.jit` whose trace leaves nothing behind when its program is forgotten.

    Functions of `jax.numpy` are jitted themselves, `+` and `where` too: each keeps what it traced for each shape,
    without a bound, until `jax.clear_caches`, which would forget everybody's programs. Here they are traced as part of
    the whole, and the program is the same.

    A loop of a known number of steps would be unrolled: have it in `with jax.disable_jit(False)`, and its step wrapped.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from smart_jax.runtime import in_one_trace
      >>> add = lambda x: jnp.where(x > 1, x, 0)
      >>> str(jax.make_jaxpr(add)(1.0)).count("jit["), str(jax.make_jaxpr(in_one_trace(add))(1.0)).count("jit[")
      (1, 0)
    """

    @functools.wraps(function)
    def whole(*arguments: P.args, **options: P.kwargs) -> R:
        with jax.disable_jit():
            return function(*arguments, **options)

    return whole
