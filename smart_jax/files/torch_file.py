"""Reads and writes torch's files of tensors and plain values, without torch and without running a pickle's code.

A torch file is a zip archive: `NAME/data.pkl`, a pickle in which tensors point to storages by number, and the storages'
bytes as `NAME/data/0`, `NAME/data/1`, ... An ordinary unpickler would call whatever the pickle names. Here the opcodes
are checked before anything runs, names resolve to inert stand-ins of a short list, and everything else is refused.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from smart_jax.files.whole_files import whole_file

STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_STORAGE_NAMES = {dtype: name for name, dtype in STORAGES.items()}

# What torch.save writes for containers, plain values and tensors. Left out on purpose: opcodes that build objects of
# named classes (NEWOBJ, INST, OBJ) or reach names that find_class never sees (EXT1, EXT2, EXT4).
_OPCODES = (
    " PROTO FRAME MARK STOP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM "
    "SETITEMS GLOBAL STACK_GLOBAL REDUCE BUILD BINPUT LONG_BINPUT BINGET LONG_BINGET MEMOIZE BINPERSID "
)
_MAX_DEPTH = 64  # levels of nested containers
_MAX_AXES = 64  # of a tensor
_MAX_OPCODES = 2**19  # of a pickle: ten tensors take 300


class TorchFileError(ValueError):
    """The file is damaged, or holds something other than tensors and plain values."""


# The stand-ins are named tuples because a pickle cannot change one: no __dict__, no __setstate__, no item assignment.
class _StorageType(NamedTuple):
    dtype: np.dtype


class _Storage(NamedTuple):
    values: np.ndarray


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _RebuildTensor(NamedTuple):
    # The arguments come from the file and may be anything.
    def __call__(
        self,
        storage: object,
        offset: Any,
        shape: Any,
        strides: Any,
        requires_grad: object = False,
        hooks: object = None,
        metadata: object = None,
    ) -> _Tensor:
        axes = type(shape) is tuple and type(strides) is tuple and len(shape) <= _MAX_AXES
        sizes = [offset, *shape, *strides] if axes else [None]
        if not isinstance(storage, _Storage) or any(type(size) is not int or size < 0 for size in sizes):
            raise TorchFileError("a tensor's storage, offset, shape or strides are invalid")
        if len(shape) != len(strides):
            raise TorchFileError(f"a tensor has shape {tuple(shape)} but strides {tuple(strides)}")
        if metadata:
            raise TorchFileError("a tensor carries metadata, which are not supported: save plain tensors")
        return _Tensor(storage, offset, tuple(shape), tuple(strides))


class _RebuildParameter(NamedTuple):
    def __call__(self, data: object, requires_grad: object = False, hooks: object = None) -> _Tensor:
        if not isinstance(data, _Tensor):
            raise TorchFileError("a parameter holds no tensor")
        return data


class _NewDict(NamedTuple):
    """Stands in the place of OrderedDict, whose arguments would have keys that nothing has looked at."""

    def __call__(self, *arguments: object) -> OrderedDict[Any, Any]:
        if arguments:
            raise TorchFileError("an OrderedDict is made of arguments, which torch.save does not write")
        return OrderedDict()


_GLOBALS: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): _NewDict(),
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
    **{("torch", name): _StorageType(dtype) for name, dtype in STORAGES.items()},
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, archive: _Archive) -> None:
        super().__init__(io.BytesIO(data))
        self._archive = archive

    def find_class(self, module: str, name: str) -> object:
        try:
            return _GLOBALS[module, name]
        except KeyError:
            raise TorchFileError(
                f"it names '{module}.{name}', which is neither a tensor nor a plain value, so it is not read: such a "
                "file can run any code when it is loaded. Save a dict of tensors and plain values instead"
            ) from None

    def persistent_load(self, pid: object) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"):
            raise TorchFileError("it holds a persistent reference that is not a tensor storage")
        _, kind, key, _, count = pid
        if not isinstance(kind, _StorageType) or not isinstance(key, str) or type(count) is not int or count < 0:
            raise TorchFileError("a storage's type, number or length is invalid")
        raw = self._archive.read(f"data/{key}")
        if len(raw) != count * kind.dtype.itemsize:
            raise TorchFileError(f"storage {key} has {len(raw)} bytes instead of {count * kind.dtype.itemsize}")
        return _Storage(np.frombuffer(raw, kind.dtype) if count else np.empty(0, kind.dtype))


class _Archive:
    """The one folder of a torch file's zip archive; entries are read once."""

    def __init__(self, file: zipfile.ZipFile, size: int) -> None:
        if sum(info.file_size for info in file.infolist()) > size:
            raise TorchFileError("its entries are larger than the file: they overlap, or are compressed")
        self._names = set(file.namelist())
        pickles = [name for name in file.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise TorchFileError("the archive has no data.pkl, so torch.save did not write it")
        self._file, self._folder = file, pickles[0].removesuffix("data.pkl")
        self._read: dict[str, bytes] = {}

    def __contains__(self, name: str) -> bool:
        return self._folder + name in self._names

    def read(self, name: str) -> bytes:
        if name not in self._read:
            if name not in self:
                raise TorchFileError(f"entry '{name}' is missing")
            info = self._file.getinfo(self._folder + name)
            if info.compress_type != zipfile.ZIP_STORED:  # torch never compresses; a zip bomb does
                raise TorchFileError(f"entry '{name}' is compressed, so torch.save did not write it")
            self._read[name] = self._file.read(info)
        return self._read[name]


def load(path: str | Path) -> Any:  # what the file holds
    """Reads a file that `torch.save` wrote: dict, list, tuple, str, int, float, bool, None and read-only arrays.

    Tensors and parameters become NumPy arrays (bfloat16 is `ml_dtypes.bfloat16`); tensors that share a storage share it
    here too. Quantised, sparse, complex and expanded tensors are refused.

    Raises:
      FileNotFoundError: the file does not exist.
      TorchFileError: it is truncated or corrupt, not in torch's zip format, or holds anything except tensors and plain
        values; a refused class or function is named.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save({"weight": np.ones((2, 3)), "epochs": 1}, f"{folder}/adapter.pt")
      ...     load(f"{folder}/adapter.pt")["weight"].shape
      (2, 3)
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no torch file at '{path}'")
    try:
        with zipfile.ZipFile(path) as file:
            archive = _Archive(file, path.stat().st_size)
            if "byteorder" in archive and archive.read("byteorder") != b"little":
                raise TorchFileError("it was saved on a big-endian machine, which is not supported")
            data = archive.read("data.pkl")
            _check_opcodes(data)
            return _plain(_Unpickler(data, archive).load(), {}, 0)
    except TorchFileError as error:
        raise TorchFileError(f"'{path}': {error}") from error
    # A hostile or damaged file can make zipfile and the unpickler raise nearly anything; all of it means one thing.
    except Exception as error:
        reason = _hint(path, error)
        raise TorchFileError(f"'{path}' is truncated, corrupt, or not a file of torch.save ({reason})") from error


def _hint(path: Path, error: Exception) -> str:
    with open(path, "rb") as file:
        if file.read(2)[:1] == b"\x80":
            return "a bare pickle: torch before 1.6 wrote those; load and save it with a newer torch"
    return f"{type(error).__name__}: {error}"


def _check_opcodes(data: bytes) -> None:
    """Raises TorchFileError where the pickle asks for more than plain values, before any of it is run.

    The opcodes are followed on a stack of kinds: what is a key is then known to be a str or an int, whose hash is
    cheap. That of nested tuples is as deep as they are, and as slow as their number, were shared ones unfolded.
    """
    machine = _Kinds()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if f" {opcode.name} " not in _OPCODES:
            raise TorchFileError(f"its pickle uses the instruction {opcode.name}, which plain values never need")
        if count > _MAX_OPCODES:
            raise TorchFileError(f"its pickle has more than {_MAX_OPCODES} instructions: save the adapter alone")
        if opcode.name == "LONG_BINPUT" and int(argument or 0) > len(data):  # the memo would be allocated up to it
            raise TorchFileError("its pickle is corrupt: a memo number exceeds the pickle's length")
        machine.step(opcode.name, argument)


class _Value:
    """Facts of a value before it exists: its kind, and how deep it is nested."""

    __slots__ = ("depth", "kind")

    def __init__(self, kind: str, depth: int = 0) -> None:
        self.kind, self.depth = kind, depth


_SCALARS = {
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "LONG4"), "int"),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), "str"),
    **dict.fromkeys(("NONE", "NEWTRUE", "NEWFALSE", "BINFLOAT"), "plain"),
    **{"EMPTY_TUPLE": "tuple", "EMPTY_LIST": "list", "EMPTY_DICT": "dict"},
}
_KEYS = ("str", "int")


class _Kinds:
    """The stack and the memo of an unpickler, of kinds in place of values."""

    def __init__(self) -> None:
        self._stack: list[_Value] = []
        self._below: list[list[_Value]] = []  # stacks below a mark
        self._memo: dict[int, _Value] = {}

    def step(self, opcode: str, argument: Any) -> None:
        """Follows one instruction."""
        stack = self._stack
        if opcode in _SCALARS:
            stack.append(_Value(_SCALARS[opcode]))
        elif opcode == "GLOBAL":
            stack.append(_Value("named"))
        elif opcode == "MARK":
            self._below.append(stack)
            self._stack = []
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif opcode == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif opcode not in ("PROTO", "FRAME", "STOP"):
            self._combine(opcode)

    def _combine(self, opcode: str) -> None:
        if opcode in ("TUPLE", "APPENDS", "SETITEMS"):
            parts, self._stack = self._stack, self._below.pop()
        else:
            count = {"TUPLE2": 2, "TUPLE3": 3, "SETITEM": 2, "STACK_GLOBAL": 2, "REDUCE": 2}.get(opcode, 1)
            parts = [self._stack.pop() for _ in range(count)][::-1]
        if opcode.startswith("TUPLE"):
            self._stack.append(_nested(_Value("tuple"), parts))
        elif opcode in ("STACK_GLOBAL", "REDUCE", "BINPERSID"):
            self._stack.append(_nested(_Value("named"), parts))
        else:  # APPEND, APPENDS, SETITEM, SETITEMS, BUILD change the value below
            if opcode.startswith("SETITEM") and any(key.kind not in _KEYS for key in parts[::2]):
                raise TorchFileError("a dict has a key that is neither a str nor an int")
            _nested(self._stack[-1], parts)


def _nested(value: _Value, parts: Sequence[_Value]) -> _Value:
    value.depth = max([value.depth, *(part.depth + 1 for part in parts)])
    if value.depth > _MAX_DEPTH:
        raise TorchFileError(f"its containers are nested deeper than {_MAX_DEPTH} levels")
    return value


def _plain(value: Any, done: dict[int, object], depth: int) -> object:  # `value` is narrowed by its exact type
    """Returns the value with tensors as arrays; one met twice is converted once, so that sharing stays."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if id(value) in done:
        return done[id(value)]
    if depth > _MAX_DEPTH:
        raise TorchFileError(f"its containers are nested deeper than {_MAX_DEPTH} levels")
    if isinstance(value, _Tensor):
        result: object = _array(value)
    elif type(value) in (dict, OrderedDict):
        if any(type(key) not in (str, int) for key in value):
            raise TorchFileError("a dict has a key that is neither a str nor an int")
        result = {key: _plain(item, done, depth + 1) for key, item in value.items()}
    elif type(value) in (list, tuple):
        result = type(value)(_plain(item, done, depth + 1) for item in value)
    else:
        kind = type(value).__name__.strip("_")
        raise TorchFileError(f"it holds a {kind}, which is neither a tensor nor a plain value")
    done[id(value)] = result
    return result


def _array(tensor: _Tensor) -> np.ndarray:
    values, offset, shape, strides = tensor.storage.values, tensor.offset, tensor.shape, tensor.strides
    size = int(np.prod(np.asarray(shape, object))) if shape else 1  # Python integers: a hostile shape cannot overflow
    if size == 0:
        return np.empty(shape, values.dtype)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if last >= len(values) or size > len(values):
        raise TorchFileError(
            f"a tensor of shape {shape}, strides {strides}, offset {offset} does not fit its storage of {len(values)} "
            "values (an expanded tensor: call .contiguous() before saving it)"
        )
    steps = [stride * values.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(values[offset:], shape, steps, writeable=False)


def save(value: object, path: str | Path) -> None:
    """Writes a value that `torch.load(path, weights_only=True)` reads.

    It may hold dicts with str keys, lists, tuples, str, int, float, bool, None and arrays. Arrays become contiguous CPU
    tensors; an array that occurs twice is stored once. The file appears only when it is complete.

    Raises:
      TypeError: a value, key or array element is of another type, which is named.

    Example:
      See `load`.
    """
    path = Path(path)
    writer = _Writer()
    writer.value(value)
    with whole_file(path) as target, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as file:
        file.writestr("archive/data.pkl", b"\x80\x02" + bytes(writer.pickle) + b".")
        file.writestr("archive/byteorder", b"little")
        for key, (array, _) in enumerate(writer.storages.values()):
            file.writestr(f"archive/data/{key}", array.tobytes())
        file.writestr("archive/version", b"3\n")


class _Writer:
    """Emits protocol 2 opcodes by hand: pickle itself can only name functions that it can import."""

    def __init__(self) -> None:
        self.pickle = bytearray()
        self.storages: dict[int, tuple[np.ndarray, int]] = {}  # id of an array -> the array (kept alive), its number

    def value(self, value: object) -> None:
        if value is None or value is True or value is False:
            self.pickle += {None: b"N", True: b"\x88", False: b"\x89"}[value]
        elif isinstance(value, int):
            self.integer(value)
        elif isinstance(value, float):
            self.pickle += b"G" + struct.pack(">d", value)
        elif isinstance(value, str):
            encoded = value.encode()
            self.pickle += b"X" + struct.pack("<I", len(encoded)) + encoded
        elif isinstance(value, tuple):
            self.sequence(b"(", value, b"t")
        elif isinstance(value, list):
            self.sequence(b"](", value, b"e")
        elif isinstance(value, Mapping):
            if odd := [key for key in value if not isinstance(key, str)]:
                raise TypeError(f"dict key {odd[0]!r}: only str keys can be saved")
            self.sequence(b"}(", [part for item in value.items() for part in item], b"u")
        elif isinstance(value, np.ndarray):
            self.array(value)
        else:
            raise TypeError(f"{type(value).__name__} cannot be saved: only plain values and NumPy arrays can")

    def sequence(self, start: bytes, values: Sequence[object], end: bytes) -> None:
        self.pickle += start
        for value in values:
            self.value(value)
        self.pickle += end

    def integer(self, value: int) -> None:
        if -(2**31) <= value < 2**31:
            self.pickle += b"J" + struct.pack("<i", value)
        else:
            encoded = pickle.encode_long(value)
            self.pickle += b"\x8a" + bytes([len(encoded)]) + encoded

    def array(self, array: np.ndarray) -> None:
        if array.dtype not in _STORAGE_NAMES:
            known = ", ".join(map(str, _STORAGE_NAMES))
            raise TypeError(f"an array of {array.dtype} cannot be saved: the types are {known}")
        _, key = self.storages.setdefault(id(array), (array, len(self.storages)))
        self.pickle += b"ctorch._utils\n_rebuild_tensor_v2\n(("
        self.value("storage")
        self.pickle += f"ctorch\n{_STORAGE_NAMES[array.dtype]}\n".encode()
        for part in (str(key), "cpu", array.size):
            self.value(part)
        self.pickle += b"tQ"  # the storage, a persistent reference
        strides = np.cumprod((1, *array.shape[:0:-1]))[::-1].tolist() if array.ndim else []
        for number in (0, tuple(array.shape), tuple(strides), False):
            self.value(number)
        self.pickle += b"ccollections\nOrderedDict\n)RtR"  # no hooks; then rebuild
