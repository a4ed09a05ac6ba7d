"""Kinds of values in a column of a table, told from its Arrow type."""

from __future__ import annotations

import pyarrow as pa


def is_list(kind: pa.DataType) -> bool:
    """Returns whether values are lists.

    Example:
      >>> is_list(pa.list_(pa.int32()))
      True
    """
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def is_number(kind: pa.DataType) -> bool:
    """Returns whether values are integers or floating-point numbers.

    Example:
      >>> is_number(pa.float32()), is_number(pa.string())
      (True, False)
    """
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def is_text(kind: pa.DataType) -> bool:
    """Returns whether values are strings.

    Example:
      >>> is_text(pa.large_string())
      True
    """
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_binary(kind: pa.DataType) -> bool:
    """Returns whether values are bytes.

    Example:
      >>> is_binary(pa.binary())
      True
    """
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def is_image(kind: pa.DataType) -> bool:
    """Returns whether values are images as the hub's data sets hold them: struct{bytes, path}, the bytes encoded.

    Example:
      >>> is_image(pa.struct({"bytes": pa.binary(), "path": pa.string()}))
      True
    """
    if not pa.types.is_struct(kind) or (at := kind.get_field_index("bytes")) < 0:
        return False
    return is_binary(kind.field(at).type)
