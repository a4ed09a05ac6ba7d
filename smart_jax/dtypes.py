"""Dtypes by name, and what is said where a name is none."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

FLOATS = tuple(np.dtype(t) for t in (ml_dtypes.bfloat16, np.float16, np.float32, np.float64))
_MEANT = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "f16": "float16", "fp32": "float32"}


def known_dtype(dtype: Any) -> np.dtype:
    """Returns a dtype.

    Raises:
      TypeError: it is a name that NumPy does not know; the message says what may be meant.

    Example:
      >>> known_dtype("bf16")
      Traceback (most recent call last):
      TypeError: dtype is 'bf16': did you mean 'bfloat16'? Floating-point ones are bfloat16, float16, float32, float64
    """
    try:
        found: np.dtype = np.dtype(dtype)
    except TypeError as error:
        meant = _MEANT.get(str(dtype).lower())
        hint = "it is unknown. " if meant is None else f"did you mean '{meant}'? "
        raise TypeError(f"dtype is {dtype!r}: {hint}Floating-point ones are {_names()}") from error
    return found


def float_dtype(dtype: Any) -> np.dtype:
    """Returns a floating-point dtype.

    Raises:
      TypeError: it is another, or unknown.

    Example:
      >>> float_dtype("bfloat16")
      dtype(bfloat16)
    """
    found = known_dtype(dtype)
    if found not in FLOATS:
        raise TypeError(f"dtype is {found}: it must be one of {_names()}")
    return found


def _names() -> str:
    return ", ".join(kind.name for kind in FLOATS)
