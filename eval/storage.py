"""Benchmarks on disk.

A folder written by `save`:
  benchmark.json            name, instructions and the version of this format
  queries.parquet, corpus.parquet   id, texts, images (encoded files), instruction; the corpus also page_text (BM25)
  qrels.tsv                 query-id, corpus-id, score, with that header
  candidates.jsonl          {"id": query, "candidates": [document, ...]}, only for local ranking

`load` also opens a BEIR folder: queries.jsonl and corpus.jsonl (_id or id; title, text, image = a path inside the
folder, page_text = for BM25 only) with qrels.tsv or qrels/test.tsv; queries without a relevant document
are left out there.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from eval.fingerprint import of_files
from eval.lazy import LazyItems, batches
from eval.parquet import Rows
from smart_jax.images import ImageLike, open_rgb
from smart_jax.items import parse_item

VERSION = 1
ROWS_AT_ONCE = 32  # of a row group: what is read to get one item
ITEM_FIELDS = [
    ("id", pa.string()),
    ("texts", pa.list_(pa.string())),
    ("images", pa.list_(pa.binary())),
    ("instruction", pa.string()),
]
ITEM_COLUMNS = [name for name, _ in ITEM_FIELDS[1:]]
QUERY_SCHEMA = pa.schema(ITEM_FIELDS)
CORPUS_SCHEMA = pa.schema([*ITEM_FIELDS, ("page_text", pa.string())])
QRELS_HEADER = ["query-id", "corpus-id", "score"]


def save(fields: Mapping[str, Any], folder: str | Path) -> None:
    """Writes the fields of a `Benchmark`, by name, to a new or empty folder; images are encoded one by one.

    Raises:
      FileExistsError: the folder is not empty.
      ValueError, TypeError, OSError: an item can not be stored; the message names it.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: remove it or save benchmark {fields['name']} elsewhere")
    folder.mkdir(parents=True, exist_ok=True)
    _write_items(folder / "queries.parquet", QUERY_SCHEMA, fields["query_ids"], fields["queries"], None)
    _write_items(folder / "corpus.parquet", CORPUS_SCHEMA, fields["corpus_ids"], fields["corpus"], fields["texts"])
    with open(folder / "qrels.tsv", "w", encoding="utf-8", newline="") as file:
        lines = [[q, d, int(grade)] for q, grades in fields["qrels"].items() for d, grade in grades.items()]
        csv.writer(file, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, quotechar=None).writerows(
            [QRELS_HEADER, *lines]
        )
    if fields["candidates"] is not None:
        rows = ({"id": q, "candidates": list(names)} for q, names in fields["candidates"].items())
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "candidates.jsonl").write_text(text, encoding="utf-8")
    header = {
        "version": VERSION,
        "name": fields["name"],
        "instruction": fields["instruction"],
        "document_instruction": fields["document_instruction"],
    }
    (folder / "benchmark.json").write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")


def load(folder: str | Path, *, name: str | None = None) -> dict[str, Any]:
    """The fields of the `Benchmark` in a folder of `save`, or in a BEIR folder; items are read when asked for.

    Args:
      folder: as in this module's docstring.
      name: replaces the stored one (BEIR folders store none: the folder's name is the default).

    Raises:
      FileNotFoundError: the folder or one of its files is missing.
      ValueError: a file is corrupt, of another version, or contradicts another.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no benchmark folder {folder}")
    header = _read_header(folder)
    query_ids, queries, _ = _read_items(folder, "queries")
    corpus_ids, corpus, texts = _read_items(folder, "corpus")
    qrels = _read_qrels(folder)
    if header is None:
        judged = [i for i, q in enumerate(query_ids) if any(grade > 0 for grade in qrels.get(q, {}).values())]
        queries, query_ids = queries.take(judged), [query_ids[i] for i in judged]
        qrels = {q: qrels[q] for q in query_ids}
        header = {}
    return dict(
        name=name or header.get("name") or folder.resolve().name,
        queries=queries,
        query_ids=query_ids,
        corpus=corpus,
        corpus_ids=corpus_ids,
        qrels=qrels,
        candidates=_read_candidates(folder),
        texts=texts,
        instruction=header.get("instruction"),
        document_instruction=header.get("document_instruction"),
    )


def _write_items(
    path: Path, schema: pa.Schema, ids: Sequence[str], items: Sequence[Any], texts: Sequence[str] | None
) -> None:
    with (
        pq.ParquetWriter(path, schema, compression="zstd") as writer,
        tqdm(total=len(ids), desc=f"write {path.name}", unit="item", delay=2) as bar,
    ):
        for part in batches(len(ids), ROWS_AT_ONCE):
            rows = []
            for i in range(part.start, part.stop):
                rows.append({"id": ids[i], **_to_row(items[i], ids[i])})
                if "page_text" in schema.names:
                    rows[-1]["page_text"] = None if texts is None else texts[i]
                bar.update()
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _to_row(item: Any, name: str) -> dict[str, Any]:
    parsed = parse_item(item, name=f"item {name}")
    images = [_encode_image(image, f"item {name}") for image in parsed.images]
    return {"texts": list(parsed.texts), "images": images, "instruction": parsed.instruction}


def _encode_image(image: ImageLike, name: str) -> bytes:
    """The encoded file: as it is for a path or bytes, else PNG."""
    if isinstance(image, str | Path | bytes):
        open_rgb(image, name=name)
        return image if isinstance(image, bytes) else Path(image).read_bytes()
    if not (isinstance(image, Image.Image) and image.mode in ("L", "RGB")):
        image = open_rgb(image, name=name)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _from_row(row: Mapping[str, Any]) -> Any:
    texts, images = row["texts"] or [], row["images"] or []
    # A text that looks like a file's name stays a text only inside a dict.
    if len(texts) == 1 and not images and row["instruction"] is None and not Path(texts[0]).suffix:
        return texts[0]
    item = {"text": texts, "images": images, "instruction": row["instruction"]}
    return {key: value for key, value in item.items() if value}


def _read_header(folder: Path) -> dict[str, Any] | None:
    path = folder / "benchmark.json"
    if not path.exists():
        return None
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): save the benchmark again") from error
    if header.get("version") != VERSION:
        raise ValueError(f"{path} has version {header.get('version')!r}, this program reads {VERSION}")
    return header


def _read_items(folder: Path, kind: str) -> tuple[list[str], LazyItems, list[str] | None]:
    """Ids, lazy items, and the page texts if every item has one."""
    if (path := folder / f"{kind}.parquet").exists():
        return _read_parquet(path)
    if (path := folder / f"{kind}.jsonl").exists():
        rows = list(_read_jsonl(path))
        ids = [str(row.get("_id", row.get("id", ""))) for row in rows]
        texts = [row.get("page_text") or _beir_text(row) or "" for row in rows]
        return ids, LazyItems(len(rows), lambda i: _from_jsonl(rows[i], folder)), texts if any(texts) else None
    raise FileNotFoundError(f"{folder} has neither {kind}.parquet nor {kind}.jsonl: it is not a benchmark folder")


def _read_parquet(path: Path) -> tuple[list[str], LazyItems, list[str] | None]:
    try:
        file = pq.ParquetFile(path)
        missing = {"id", *ITEM_COLUMNS} - set(file.schema_arrow.names)
        if missing:
            raise ValueError(f"{path} lacks the columns {sorted(missing)}: it was not written by Benchmark.save")
        ids = file.read(["id"])["id"].to_pylist()
        texts = file.read(["page_text"])["page_text"].to_pylist() if "page_text" in file.schema_arrow.names else []
    except pa.ArrowException as error:
        raise ValueError(f"{path} is corrupt ({error}): save the benchmark again") from error
    rows = Rows([file], ITEM_COLUMNS)
    items = LazyItems(len(ids), lambda i: _from_row(rows(i)), source=of_files([path]))
    return ids, items, texts if texts and None not in texts else None


def _from_jsonl(row: Mapping[str, Any], folder: Path) -> Any:
    text, image = _beir_text(row), row.get("image")
    if image is None:
        return text
    item: dict[str, Any] = {"image": folder / image}
    return {**item, "text": text} if text else item


def _beir_text(row: Mapping[str, Any]) -> str:
    return f"{row.get('title') or ''} {row.get('text') or ''}".strip()


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number} is not valid JSON ({error})") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number} is not a JSON object")
            yield row


def _read_qrels(folder: Path) -> dict[str, dict[str, int]]:
    paths = [folder / "qrels.tsv", folder / "qrels" / "test.tsv"]
    path = next((p for p in paths if p.exists()), None)
    if path is None:
        raise FileNotFoundError(f"{folder} has neither qrels.tsv nor qrels/test.tsv")
    qrels: dict[str, dict[str, int]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split("\t")
        if not line or (number == 1 and fields == QRELS_HEADER):
            continue
        try:
            query, document, grade = fields
            value = int(grade)
        except ValueError:
            raise ValueError(f"{path}, line {number}: expected query, document, integer score, not {line!r}") from None
        if document in qrels.setdefault(query, {}):
            raise ValueError(f"{path}, line {number}: query {query}, document {document} is judged twice")
        qrels[query][document] = value
    return qrels


def _read_candidates(folder: Path) -> dict[str, list[str]] | None:
    path = folder / "candidates.jsonl"
    if not path.exists():
        return None
    rows = list(_read_jsonl(path))
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("id"), str) or not isinstance(row.get("candidates"), list):
            raise ValueError(f'{path}, line {number}: expected {{"id": query, "candidates": [document, ...]}}')
    return {row["id"]: row["candidates"] for row in rows}
