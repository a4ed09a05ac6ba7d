"""Processes that were forked from one that had used jax already: they lack its threads, and a computation hangs."""

from __future__ import annotations

import os

_used_by: int | None = None  # the process that has computed


def refuse_after_fork() -> None:
    """Notes that this process computes; raises RuntimeError where the one that it was forked from did so before.

    Example:
      >>> refuse_after_fork()
    """
    global _used_by
    if _used_by is None:
        _used_by = os.getpid()
    elif _used_by != os.getpid():
        raise RuntimeError(
            "this process was forked after jax had computed, and would hang: it lacks the threads. Start it "
            "otherwise, multiprocessing.get_context('spawn'), or fork before the first computation"
        )
