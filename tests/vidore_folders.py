"""Small ViDoRe sets in the layouts that the hub has, with pages whose words can be read off their pixels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from eval.benchmarks.vidore import VidoreSet
from smart_jax.inputs.image import open_rgb
from smart_jax.inputs.item import parse_item
from tests.fake_encoder import FakeEncoder

WORDS = ("amber", "basalt", "cedar", "delta", "ember", "fjord")
CELL = 16  # pixels
PAGES = {10: "amber basalt cedar", 11: "delta ember", 12: "fjord amber", 13: "cedar delta"}
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

# What the loader must make of the folders below.
CORPUS_IDS = ["10", "11", "12", "13"]
V1 = {
    "queries": ["amber basalt", "delta ember", "fjord"],
    "query_ids": ["0", "1", "2"],
    "qrels": {"0": {"10": 1}, "1": {"11": 1, "13": 1}, "2": {"12": 1}},
}
V2 = {
    "queries": ["fjord amber", "delta", "fjord de amber", "le delta"],
    "query_ids": ["0", "1", "2", "3"],
    "qrels": {"0": {"12": 1, "10": 2}, "1": {"11": 1, "13": 1}, "2": {"12": 1, "10": 2}, "3": {"11": 1, "13": 1}},
}
V2_ENGLISH = {
    "queries": V2["queries"][:2],
    "query_ids": ["0", "1"],
    "qrels": {"0": {"12": 1, "10": 2}, "1": {"11": 1, "13": 1}},
}
V3 = {
    "queries": ["cedar amber", "fjord amber", "le fjord"],
    "query_ids": ["7", "8", "9"],
    "qrels": {"7": {"10": 1, "12": 2, "13": 2}, "8": {"10": 1, "12": 0}, "9": {"12": 2}},
}


def png(words: str) -> bytes:
    """A page of 64 x 64 pixels; the columns of cells are its words."""
    pixels = np.full((64, 64, 3), 255, np.uint8)
    for at, word in enumerate(words.split()):
        pixels[:, at * CELL : (at + 1) * CELL] = (40 * WORDS.index(word), 10, 90)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def words_of(image: bytes) -> list[str]:
    row = np.asarray(open_rgb(image))[0, CELL // 2 :: CELL]
    return [WORDS[red // 40] for red, green, _ in row.tolist() if green == 10]


class Reader(FakeEncoder):
    """Reads the pages; every known word is a direction of its own, at right angles to the others."""

    def tokens(self, item):
        parsed = parse_item(item)
        words = " ".join(parsed.texts).split() + [word for image in parsed.images for word in words_of(image)]
        known = [word for word in words if word in WORDS] or ["?"]
        return np.eye(len(WORDS) + 1)[[(*WORDS, "?").index(word) for word in known]]

    def pooled(self, item):
        mean = self.tokens(item).mean(axis=0)
        return mean / np.linalg.norm(mean)


def write(folder: Path, part: str, columns: dict[str, pa.Array], *, files: int = 1, row_group_size: int = 100) -> None:
    """The part's parquet files, named as on the hub."""
    table = pa.table(columns)
    (folder / part).mkdir(parents=True, exist_ok=True)
    bounds = [round(i * len(table) / files) for i in range(files + 1)]
    for i in range(files):
        path = folder / part / f"test-{i:05}-of-{files:05}.parquet"
        pq.write_table(table.slice(bounds[i], bounds[i + 1] - bounds[i]), path, row_group_size=row_group_size)


def images(pages: dict[int, str] = PAGES) -> pa.Array:
    return pa.array([{"bytes": png(words), "path": f"{name}.png"} for name, words in pages.items()], IMAGE)


def write_v1(folder: Path) -> Path:
    """Without languages, texts or grades; the first relevant page of query 1 was merged from two rows."""
    write(folder, "queries", {"query-id": pa.array([0, 1, 2]), "query": pa.array(V1["queries"])})
    write(folder, "corpus", {"corpus-id": pa.array(list(PAGES)), "image": images()}, files=2)
    judged = {"query-id": [0, 1, 1, 1, 2], "corpus-id": [10, 11, 13, 11, 12], "score": [1] * 5}
    write(folder, "qrels", {name: pa.array(values) for name, values in judged.items()})
    return folder


def write_v2(folder: Path) -> Path:
    """Queries in two languages, grades, and a further folder that is not read."""
    queries = {
        "query-id": pa.array([0, 1, 2, 3]),
        "query": pa.array(V2["queries"]),
        "language": pa.array(["english", "english", "french", "french"]),
        "answer": pa.array(["a", "b", None, "d"]),
    }
    write(folder, "queries", queries)
    corpus = {"corpus-id": pa.array(list(PAGES)), "image": images(), "doc-id": pa.array(["x"] * 4)}
    write(folder, "corpus", corpus, row_group_size=1)
    judged = {
        "query-id": [0, 0, 1, 1, 2, 2, 3, 3],
        "corpus-id": [12, 10, 11, 13, 12, 10, 11, 13],
        "score": [1, 2, 1, 1, 1, 2, 1, 1],
    }
    write(folder, "qrels", {name: pa.array(values) for name, values in judged.items()})
    write(folder, "docs", {"doc-id": pa.array(["x"])})
    return folder


def write_v3(folder: Path) -> Path:
    """Names with underscores, the pages' text, boxes of the annotators, a page judged 0."""
    queries = {
        "query_id": pa.array([7, 8, 9]),
        "query": pa.array(V3["queries"]),
        "language": pa.array(["english", "english", "french"]),
        "query_types": pa.array([["extractive"], [], ["open-ended", "numerical"]]),
        "answer": pa.array(["a", "b", "c"]),
    }
    write(folder, "queries", queries)
    corpus = {
        "corpus_id": pa.array(list(PAGES)),
        "image": images(),
        "doc_id": pa.array(["x", "x", "y", "y"]),
        "markdown": pa.array(["# amber\nbasalt cedar", "delta ember", None, "cedar | delta"]),
        "page_number_in_doc": pa.array([0, 1, 0, 1]),
    }
    write(folder, "corpus", corpus)
    box = pa.struct([(name, pa.int64()) for name in ("annotator", "x1", "x2", "y1", "y2")])
    qrels = {
        "query_id": pa.array([7, 7, 7, 8, 8, 9]),
        "corpus_id": pa.array([10, 12, 13, 10, 12, 12]),
        "score": pa.array([1, 2, 2, 1, 0, 2]),
        "content_type": pa.array([["Text"]] * 6),
        "bounding_boxes": pa.array([[dict.fromkeys(("annotator", "x1", "x2", "y1", "y2"), 1)]] * 6, pa.list_(box)),
    }
    write(folder, "qrels", qrels)
    return folder


WRITERS = {"v1": write_v1, "v2": write_v2, "v2-english": write_v2, "v3": write_v3}
EXPECTED = {"v1": V1, "v2": V2, "v2-english": V2_ENGLISH, "v3": V3}


def write_set(entry: VidoreSet, root: Path) -> Path:
    """The set's folder in ROOT, in its version's layout."""
    return WRITERS[entry.versions[0]](root / entry.repository.rpartition("/")[2])
