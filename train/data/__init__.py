"""Training data: sources converted once, splits read by any number of hosts, mixtures, mined negatives, batches."""

from train.data.dataset import Example, Examples, Item, Source, Split, content_hash, open_split, split_names

__all__ = ["Example", "Examples", "Item", "Source", "Split", "content_hash", "open_split", "split_names"]
