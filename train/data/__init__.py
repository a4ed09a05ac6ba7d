"""Training data: sources converted once, splits read by any number of hosts, mixtures, mined negatives, batches."""

from train.data.batches import UNREADABLE, Batcher, Prepared
from train.data.convert import Conversion, convert
from train.data.dataset import Example, Item, Source, Split, content_hash, open_split, split_names
from train.data.examples import Examples
from train.data.mixture import Mixture, open_examples, parse_names
from train.data.prefetch import Prefetch
from train.data.work import Work, count_work

__all__ = [
    "UNREADABLE",
    "Batcher",
    "Conversion",
    "Example",
    "Examples",
    "Item",
    "Mixture",
    "Prefetch",
    "Prepared",
    "Source",
    "Split",
    "Work",
    "content_hash",
    "convert",
    "count_work",
    "open_examples",
    "open_split",
    "parse_names",
    "split_names",
]
