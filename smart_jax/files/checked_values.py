"""Numbers that a file gives, checked where they are read: a JSON file may hold anything in their place."""

from __future__ import annotations

import math

LARGEST = 2**31 - 1  # a size of an array's axis, or a number of things
LONGEST_SHOWN = 80  # characters of a value in a message


def checked_int(value: object, name: str, *, least: int = 1, most: int = LARGEST) -> int:
    """Returns an integer within bounds.

    Args:
      value: as the file has it.
      name: of the file and the key, for the message.
      least, most: bounds, both allowed.

    Raises:
      ValueError: it is something else.

    Example:
      >>> checked_int(12, "config.json: num_hidden_layers")
      12
      >>> checked_int(1e9, "config.json: num_hidden_layers", most=1024)
      Traceback (most recent call last):
      ValueError: config.json: num_hidden_layers is 1000000000.0, expected an integer from 1 to 1024
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        expected = "a positive integer" if (least, most) == (1, LARGEST) else f"an integer from {least} to {most}"
        raise ValueError(f"{name} is {shown(value)}, expected {expected}")
    return value


def checked_float(value: object, name: str, *, positive: bool = True) -> float:
    """Returns a finite number as a float.

    Args:
      value: as the file has it.
      name: of the file and the key, for the message.
      positive: whether it must be above 0.

    Raises:
      ValueError: it is something else.

    Example:
      >>> checked_float(float("inf"), "adapter_config.json: lora_alpha")
      Traceback (most recent call last):
      ValueError: adapter_config.json: lora_alpha is inf, expected a positive number
    """
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**64:
        value = float(value)
    if not isinstance(value, float) or not math.isfinite(value) or (positive and value <= 0):
        raise ValueError(f"{name} is {shown(value)}, expected a {'positive' if positive else 'finite'} number")
    return value


def shown(value: object) -> str:
    """Returns a value of a file as messages show it: its beginning, or its kind where it has parts that are unbounded.

    Example:
      >>> shown("a" * 100)[:12], shown([1, 2]), shown({"a": [1]})
      ("'aaaaaaaaaaa", '[1, 2]', 'an object')
    """
    if isinstance(value, int) and abs(value) >= 2**64:
        return "an integer of more than 64 bits"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple):
        flat = len(value) <= LONGEST_SHOWN and not any(isinstance(part, dict | list | tuple) for part in value)
        return f"[{', '.join(map(shown, value))}]"[:LONGEST_SHOWN] if flat else "a list"
    text = repr(value[: LONGEST_SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."
