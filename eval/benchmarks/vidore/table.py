"""The sets of ViDoRe V1, V2 and V3: where they are on the hub, and how they are read.

Names are those of MMEB-V2 where it has the set, so that ties are broken as there. V1 is what ViDoRe's authors made of
their question answering sets, equal pages and equal queries merged; figures on those sets themselves differ a little.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from eval.benchmarks.messages import quoted

INSTRUCTION = "Find a document image that matches the given query."
PARTS = ("queries", "corpus", "qrels")


@dataclasses.dataclass(frozen=True)
class Layout:
    """Names of the columns that differ between layouts; that of the pages' texts may be missing."""

    query_id: str
    corpus_id: str
    text: str


HYPHENS = Layout("query-id", "corpus-id", "text_description")
UNDERSCORES = Layout("query_id", "corpus_id", "markdown")


@dataclasses.dataclass(frozen=True)
class VidoreSet:
    """One line of the table.

    Attributes:
      name: of the benchmark.
      repository: on the hub.
      versions: the versions of ViDoRe that have the set, keys of `VERSIONS`.
      metric: the primary metric.
      layout: of the files.
      language: value that the queries' column `language` must have; None = all queries.
      split: of the files.

    Example:
      >>> (entry,) = select(["docvqa"])
      >>> entry.repository, entry.metric
      ('vidore/docvqa_test_subsampled_beir', 'ndcg@5')
    """

    name: str
    repository: str
    versions: tuple[str, ...]
    metric: str = "ndcg@5"
    layout: Layout = HYPHENS
    language: str | None = None
    split: str = "test"


VERSIONS = {  # names for people
    "v1": "ViDoRe V1",
    "v2": "ViDoRe V2",
    "v2-english": "ViDoRe V2, English queries",
    "v3": "ViDoRe V3, public sets",
}
DEFAULT_VERSIONS = ("v1", "v2", "v3")
_V1 = {
    "arxivqa": "arxivqa_test_subsampled",
    "docvqa": "docvqa_test_subsampled",
    "infovqa": "infovqa_test_subsampled",
    "tabfquad": "tabfquad_test_subsampled",
    "tatdqa": "tatdqa_test",
    "shiftproject": "shiftproject_test",
    "syntheticDocQA_artificial_intelligence": "syntheticDocQA_artificial_intelligence_test",
    "syntheticDocQA_energy": "syntheticDocQA_energy_test",
    "syntheticDocQA_government_reports": "syntheticDocQA_government_reports_test",
    "syntheticDocQA_healthcare_industry": "syntheticDocQA_healthcare_industry_test",
}
_V2 = ("biomedical_lectures_v2", "economics_reports_v2", "esg_reports_v2")  # queries in four languages
_V3 = (  # queries in six languages
    *("finance_en", "finance_fr", "industrial", "pharmaceuticals", "computer_science", "hr", "energy", "physics"),
)
SETS = (
    *(VidoreSet(f"ViDoRe_{name}", f"vidore/{stem}_beir", ("v1",)) for name, stem in _V1.items()),
    VidoreSet("ViDoRe_esg_reports_human_labeled_v2", "vidore/esg_reports_human_labeled_v2", ("v2", "v2-english")),
    *(VidoreSet(f"ViDoRe_{name}_multilingual", f"vidore/{name}", ("v2",)) for name in _V2),
    *(VidoreSet(f"ViDoRe_{name}", f"vidore/{name}", ("v2-english",), language="english") for name in _V2),
    *(VidoreSet(f"ViDoRe_v3_{name}", f"vidore/vidore_v3_{name}", ("v3",), "ndcg@10", UNDERSCORES) for name in _V3),
)


def select(names: Sequence[str] = (), versions: Sequence[str] = ()) -> list[VidoreSet]:
    """Returns sets of the table, in its order.

    Args:
      names: of sets, `"ViDoRe_"` may be left out; none = all sets of the versions.
      versions: keys of `VERSIONS`; none = `DEFAULT_VERSIONS`, or with names those of the named sets.

    Raises:
      ValueError: an unknown name or version, or a set that is in none of the versions.

    Example:
      >>> [entry.name for entry in select(["tatdqa", "ViDoRe_arxivqa"])], len(select(versions=["v3"]))
      (['ViDoRe_arxivqa', 'ViDoRe_tatdqa'], 8)
    """
    if unknown := [version for version in versions if version not in VERSIONS]:
        raise ValueError(f"unknown versions {quoted(unknown)}: use some of {', '.join(VERSIONS)}")
    if not names:
        return [s for s in SETS if set(s.versions) & set(versions or DEFAULT_VERSIONS)]
    table = {s.name: s for s in SETS}
    full = [name if name in table else f"ViDoRe_{name}" for name in names]
    if unknown := [name for name, f in zip(names, full, strict=True) if f not in table]:
        raise ValueError(f"unknown sets {quoted(unknown)}: use some of {', '.join(table)}")
    if versions and (others := [f for f in full if not set(table[f].versions) & set(versions)]):
        raise ValueError(f"{quoted(others)} are in none of the versions {', '.join(versions)}: leave the versions out")
    return [s for s in SETS if s.name in full]


def stem(entry: VidoreSet) -> str:
    """Returns the name of the set's folder.

    Example:
      >>> stem(select(["tatdqa"])[0])
      'tatdqa_test_beir'
    """
    return entry.repository.rpartition("/")[2]


def find(entry: VidoreSet, root: str | Path) -> Path | None:
    """Returns the set's folder in a local one, ROOT/NAME or ROOT/OWNER/NAME of its repository; None = it is not there.

    Example:
      >>> find(select(["tatdqa"])[0], "no-such-folder") is None
      True
    """
    for name in (stem(entry), entry.repository):
        if (folder := Path(root) / name).is_dir():
            return folder
    return None


def how_to_get(entry: VidoreSet, folder: str | Path) -> str:
    """Returns the command that puts a set's files into this folder, or into the hub's cache if it is a snapshot's.

    Example:
      >>> how_to_get(select(["tatdqa"])[0], "sets/tatdqa")
      'hf download --repo-type dataset vidore/tatdqa_test_beir --local-dir sets/tatdqa'
    """
    command = f"hf download --repo-type dataset {entry.repository}"
    return command if Path(folder).parent.name == "snapshots" else f"{command} --local-dir {folder}"
