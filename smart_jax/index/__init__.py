"""The index: pages of files, and other items, in a folder that is searched with their evidence.

`value_cap` is a module of public functions.
"""

from smart_jax.index import value_cap
from smart_jax.index.certificate import Certificate
from smart_jax.index.choosing import Provisional
from smart_jax.index.documents import SUFFIXES
from smart_jax.index.hits import Hit, StoredItem
from smart_jax.index.index import Index
from smart_jax.index.index_info import IndexInfo
from smart_jax.index.report import AddReport
from smart_jax.index.write_lock import BusyError

__all__ = [
    "SUFFIXES",
    "AddReport",
    "BusyError",
    "Certificate",
    "Hit",
    "Index",
    "IndexInfo",
    "Provisional",
    "StoredItem",
    "value_cap",
]
