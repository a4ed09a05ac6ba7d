"""Processes that are killed at random moments (SIGKILL): nothing is lost, and nothing is left over.

    python -m tests.kills --rounds 30                    # of each kind
    python -m tests.kills --rounds 30 --kinds save,eval

Each kind goes on after each kill, and ends as it does when nobody stops it, bit for bit; the suite runs fewer rounds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.test_cache import killed_evaluations
from tests.test_embeddings import killed_saves
from tests.test_index_killed import attempts, killed_adds, old_index
from tests.test_killed import SETTINGS, killed_runs
from tests.training import write_inputs


def training(trainable: str) -> Callable[[Path, int], str]:
    """Returns the kills of a run, the last tenth of which are in its export."""

    def run(folder: Path, rounds: int) -> str:
        (folder / "inputs").mkdir()
        killed, partial = killed_runs(write_inputs(folder / "inputs"), folder, trainable, rounds)
        return f"{killed} killed, {partial} with a checkpoint half written"

    return run


def encoding(folder: Path, rounds: int) -> str:
    """Encoding of PDF files into an index."""
    old, killed = old_index(folder / "old"), 0
    with attempts() as attempt:
        for number in range(-(-rounds // 4)):
            (folder / str(number)).mkdir()
            killed += killed_adds(old, attempt, folder / str(number), rounds=2)
    return f"{killed} killed"


def saving(folder: Path, rounds: int) -> str:
    """`Embeddings.save` into a folder that holds some."""
    return f"{rounds} killed, {killed_saves(folder, rounds)} left files for the next to remove"


def evaluation(folder: Path, rounds: int) -> str:
    """`eval.run` with its cache of states."""
    return f"{killed_evaluations(folder / 'run', rounds)} of {rounds} killed before they ended"


KINDS: dict[str, Callable[[Path, int], str]] = {name: training(name) for name in SETTINGS}
KINDS |= {"encode": encoding, "save": saving, "eval": evaluation}


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--kinds", default=",".join(KINDS), help="of " + ", ".join(KINDS))
    asked = parser.parse_args()
    for kind in asked.kinds.split(","):
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            print(f"{kind}: {KINDS[kind](Path(folder), asked.rounds)}, {time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
