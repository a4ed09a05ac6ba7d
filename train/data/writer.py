"""Data sets as they are written: records in ArrayRecord files by tensorflow-datasets, their outlines beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from train.data.outlines import Outline, Outlines, outlines_file

VERSION = "1.0.0"


class DataSetWriter:
    """Writer of a new data set, whose examples keep the order in which they come.

    The GeneratorBasedBuilder of tensorflow_datasets would shuffle what it writes, and for that it needs tensorflow as
    soon as a split exceeds 1 GB.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        features: tfds.features.FeaturesDict,
        splits: Sequence[str],
        examples_per_shard: int,
    ):
        """Makes the folder, which is that of the data set's version."""
        folder.mkdir(parents=True)
        self._folder, self._outlines = folder, {split: list[Outline]() for split in splits}
        self._writer = tfds.core.SequentialWriter(
            _info(folder, name, features), examples_per_shard, file_format="array_record"
        )
        self._writer.initialize_splits(list(splits))

    @property
    def counts(self) -> dict[str, int]:
        """Number of examples written so far, by split."""
        return {split: len(outlines) for split, outlines in self._outlines.items()}

    def add(self, examples: Mapping[str, Sequence[tuple[dict[str, Any], Outline]]]) -> None:
        """Writes records with their outlines, by split; each call rewrites the metadata, so many at once are better."""
        self._writer.add_examples({split: [record for record, _ in some] for split, some in examples.items() if some})
        for split, some in examples.items():
            self._outlines[split] += [outline for _, outline in some]

    def close(self) -> dict[str, int]:
        """Writes what is left; returns the number of examples by split."""
        self._writer.close_all()
        for split, outlines in self._outlines.items():
            if outlines:
                Outlines.of(outlines).write(outlines_file(self._folder, split))
        return self.counts


def join(parts: Sequence[Path], folder: Path, name: str, features: tfds.features.FeaturesDict) -> dict[str, int]:
    """Makes one data set of several with the same splits, one after another: their files are moved.

    Returns:
      The number of examples by split.
    """
    folder.mkdir(parents=True)
    written = [tfds.builder_from_directory(part).info.splits for part in parts]
    splits = []
    for split in written[0]:
        lengths = [length for part in written for length in part[split].shard_lengths]
        size = sum(part[split].num_bytes for part in written)
        template = tfds.core.ShardedFileTemplate(
            dataset_name=name,
            data_dir=folder,
            split=split,
            filetype_suffix="array_record",
            template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}",
        )
        files = [Path(path) for part in written for path in part[split].filepaths]
        for number, file in enumerate(files):
            file.rename(template.sharded_filepath(shard_index=number, num_shards=None))
        splits.append(tfds.core.SplitInfo(split, lengths, size, template))
        outlines = [file for part in parts if (file := outlines_file(part, split)).is_file()]
        if outlines:
            Outlines.read(outlines).write(outlines_file(folder, split))
    info = _info(folder, name, features)
    info.set_file_format("array_record")
    info.set_splits(tfds.core.SplitDict(splits))
    info.write_to_directory(folder)
    return {split.name: sum(split.shard_lengths) for split in splits}


def check_name(name: str) -> None:
    """Raises ValueError where a data set cannot have this name."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"data set name '{name}': use lower-case letters, digits and underscores, a letter first")


def _info(folder: Path, name: str, features: tfds.features.FeaturesDict) -> tfds.core.DatasetInfo:
    identity = tfds.core.DatasetIdentity(
        name=name, version=tfds.core.Version(VERSION), data_dir=str(folder), module_name=__name__
    )
    return tfds.core.DatasetInfo(
        builder=identity, description="Query-document pairs for contrastive training.", features=features
    )
