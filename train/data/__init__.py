"""Training data: sources converted once, splits read by any number of hosts, mixtures, mined negatives, batches."""

from train.data.batches import Batcher, Prepared, put_batch
from train.data.clean_queries import clean_query
from train.data.convert import Conversion, convert
from train.data.dataset import Example, Source, Split, open_split, split_fingerprint, split_names
from train.data.examples import Examples, Share
from train.data.mixture import Mixture, open_examples, parse_names
from train.data.outlines import Item, Outline, content_hash
from train.data.prefetch import Prefetch
from train.data.rows import UNREADABLE, Skipped
from train.data.work import Work, count_work

__all__ = [
    "UNREADABLE",
    "Batcher",
    "Conversion",
    "Example",
    "Examples",
    "Item",
    "Mixture",
    "Outline",
    "Prefetch",
    "Prepared",
    "Share",
    "Skipped",
    "Source",
    "Split",
    "Work",
    "clean_query",
    "content_hash",
    "convert",
    "count_work",
    "open_examples",
    "open_split",
    "parse_names",
    "put_batch",
    "split_fingerprint",
    "split_names",
]
