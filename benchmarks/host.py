"""The host's side of encoding and training: `python -m benchmarks.host [--quick] [--part pipeline ...]`.

    pipeline   encoding before a stand-in for the device: how busy it is, its first batch, memory; threads; padding
    pixels     from a JPEG file to a place in a batch, step by step
    training   conversion, and batches from a data set on disk

Everything runs on the CPU, and no model is needed but for its preprocessing. Wall-clock figures mean something on an
idle machine only; what is compared takes turns.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import platform
from collections.abc import Callable

from benchmarks import host_pipeline


def pipeline(quick: bool) -> None:
    """Prints the tables of encoding before a stand-in for the device."""
    made = host_pipeline.preprocessor()
    pages, workers = (16, [4]) if quick else (512, [1, 2, 4, 8])
    seconds = [0.02] if quick else [0.02, 0.005]
    print("\nSimulated workers, 8 rows a batch\n")
    print("\n".join(host_pipeline.simulated_table(made, pages, workers, seconds)), flush=True)
    print("\nPages of 1240 x 1754 pixels, JPEG, 8 rows a batch\n")
    print("\n".join(host_pipeline.real_table(made, 8 if quick else 64, [0.1, *seconds])), flush=True)
    print("\nThreads\n")
    print("\n".join(host_pipeline.speed_up(made, 8 if quick else 24, 1 if quick else 7)), flush=True)
    print("\nPadding, 8 rows a batch\n")
    print("\n".join(host_pipeline.padding_table(made, 64 if quick else 1024)), flush=True)


def pixels(quick: bool) -> None:
    """Prints the table of a page's way from JPEG to its place in a batch, step by step."""
    host_pixels = importlib.import_module("benchmarks.host_pixels")
    print("\nPixels, CPU milliseconds a page\n")
    print("\n".join(host_pixels.table(1 if quick else 9)), flush=True)


def training(quick: bool) -> None:
    """Prints the table of conversion and of batches for training."""
    from benchmarks import host_training  # brings what training needs

    print("\nTraining\n")
    print(host_training.table(host_training.measure(*((8, 1) if quick else (48, 5)))), flush=True)


PARTS: dict[str, Callable[[bool], None]] = {"pipeline": pipeline, "training": training}
if importlib.util.find_spec("benchmarks.host_pixels"):
    PARTS["pixels"] = pixels


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="may be given several times; default all")
    parser.add_argument("--quick", action="store_true", help="few pages, to see that it runs")
    args = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for name in args.part or PARTS:
        PARTS[name](args.quick)


if __name__ == "__main__":
    main()
