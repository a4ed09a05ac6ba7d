"""MaxSim called outside of every trace: a shape's first call is the host's, and later ones are a compiled program's.

A compilation takes as long as a hundred small calls. Where shapes change from call to call, as they do where queries
and candidates come one by one, it would be all that is done, and the programs would fill the memory.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable

import jax
import ml_dtypes
import numpy as np

from smart_jax.typing import HostOrDevice

HOST_DTYPES = tuple(np.dtype(t) for t in (np.float32, np.float16, ml_dtypes.bfloat16, bool))
LARGE = 2**33  # multiplications, a tenth of a second of a core: so much is compiled at once
PROGRAMS = 8  # compiled for the asking
EARNED_BY = 2**36  # multiplications on the host, a second of a core, for one more
RECENT = 64  # shapes that are remembered without a program


class Shapes:
    """Tells which shapes are worth a program, of which there are few.

    One is worth it that comes again while it is remembered. After the first `PROGRAMS` of these, the host must have
    been at work for a second before each other one: compilations never take more time than what is computed.

    Example:
      >>> shapes = Shapes()
      >>> [shapes.are_compiled((3, 5), products=1000) for _ in range(3)]
      [False, True, True]
    """

    def __init__(self) -> None:
        self._compiled: set[Hashable] = set()
        self._recent: OrderedDict[Hashable, None] = OrderedDict()
        self._on_host = 0
        self._lock = threading.Lock()

    def are_compiled(self, shape: Hashable, products: int) -> bool:
        """Tells whether a call of this shape, of so many multiplications, is a program's; counts it if not."""
        with self._lock:  # calls come from several threads
            if shape in self._compiled:
                return True
            again = shape in self._recent or products >= LARGE
            if again and len(self._compiled) < PROGRAMS + self._on_host // EARNED_BY:
                self._compiled.add(shape)
                return True
            self._recent[shape] = None
            self._recent.move_to_end(shape)
            if len(self._recent) > RECENT:
                self._recent.popitem(last=False)
            self._on_host += products
            return False


shapes = Shapes()


def is_hosts_turn(name: Hashable, arrays: tuple[HostOrDevice | None, ...], products: int) -> bool:
    """Tells whether the host does a call of these arrays, which takes so many multiplications.

    `name` says what else makes a program another one.
    """
    if not are_hosts(*arrays):
        return False
    signature = tuple(None if x is None else (x.shape, x.dtype) for x in arrays)
    return not shapes.are_compiled((name, signature), products)


def are_hosts(*arrays: HostOrDevice | None) -> bool:
    """Tells whether the host can do with the arrays: none is traced, or on a device where it was put on purpose."""
    for x in arrays:
        if isinstance(x, jax.core.Tracer) or (isinstance(x, jax.Array) and x.committed):
            return False
        if x is not None and x.dtype not in HOST_DTYPES:
            return False
    return jax.default_backend() == "cpu"
