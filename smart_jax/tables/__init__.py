"""Tables of data sets in parquet files, which need pyarrow (`smart_jax[train]` and `smart_jax[eval]` bring it)."""

from smart_jax.tables.column_types import is_binary, is_image, is_list, is_number, is_text
from smart_jax.tables.parquet import Records, Table, open_parquet, read_in_order, shards, splits

__all__ = [
    "Records",
    "Table",
    "is_binary",
    "is_image",
    "is_list",
    "is_number",
    "is_text",
    "open_parquet",
    "read_in_order",
    "shards",
    "splits",
]
