"""Converts a source of query-document pairs: python -m train.data --source FOLDER_OR_HUB_ID --name NAME --out FOLDER

    python -m train.data --source vidore/colpali_train_set --name colpali --out data

writes data/colpali, a tensorflow-datasets data set in ArrayRecord format with the splits train and validation. See
`train.data.parquet` for the layout of a source.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from train.data.convert import convert


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command with these arguments; None = those of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m train.data",
        description="Convert query-document pairs (parquet, Hugging Face layout) to a data set for training.",
    )
    parser.add_argument("--source", required=True, help="folder with parquet files, or hub id owner/name")
    parser.add_argument("--name", required=True, help="name of the data set, such as colpali")
    parser.add_argument("--out", required=True, help="folder of the data sets")
    parser.add_argument("--split", default="train", help="split of the source (default: %(default)s)")
    parser.add_argument("--subset", help="folder of the source, such as a language")
    parser.add_argument("--revision", help="revision of the hub data set")
    parser.add_argument("--max_negatives", type=int, help="keep at most so many of each row (default: all)")
    parser.add_argument("--validation_ratio", type=float, default=0.02, help="default: %(default)s; 0 = none")
    parser.add_argument("--seed", type=int, default=0, help="of the validation split (default: %(default)s)")
    parser.add_argument("--shards", type=int, help="files per split (default: by size)")
    parser.add_argument("--skip_unreadable", action="store_true", help="leave out rows without a readable document")
    parser.add_argument("--overwrite", action="store_true", help="replace a data set of this name")
    parser.add_argument(
        "--processes",
        type=int,
        default=os.cpu_count() or 1,
        help="that convert side by side (default: one a core)",
    )
    parser.add_argument("--video_folder", help="where absolute paths of videos may lead (default: --source)")
    options = vars(parser.parse_args(arguments))
    try:
        result = convert(options.pop("source"), options.pop("name"), options.pop("out"), **options)
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"train.data: {error}")
    counts = ", ".join(f"{split}: {count} examples" for split, count in result.examples.items())
    skipped = ", ".join(f"{count} rows ({reason})" for reason, count in result.skipped.items()) or "nothing"
    print(f"wrote {result.path} with {counts}; left out {skipped}")


if __name__ == "__main__":
    main()
