"""Prints the commands that complete an MMEB-V2 folder: python -m eval.benchmarks.mmeb_v2 FOLDER [TASK ...] (| sh to run
them)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from eval.benchmarks.mmeb_v2 import lacking, select


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command, by default with the arguments of the command line."""
    parser = argparse.ArgumentParser(prog="python -m eval.benchmarks.mmeb_v2", description=__doc__)
    parser.add_argument("folder", help="a copy of the hub's TIGER-Lab/MMEB-V2, or where one shall be")
    parser.add_argument("tasks", nargs="*", help="their names; none = all 78")
    args = parser.parse_args(argv)
    try:
        tasks = select(args.tasks)
    except ValueError as error:
        parser.error(str(error))
    commands = {task.name: lacking(task, args.folder) for task in tasks}
    for command in dict.fromkeys(command for of_task in commands.values() for command in of_task):
        print(command)
    complete = [name for name, of_task in commands.items() if not of_task]
    print(f"# {len(complete)} of {len(tasks)} tasks have their annotations and folders of images or frames")


if __name__ == "__main__":
    main()
