"""Fingerprints of files, cheap for large ones: what tells whether they are still the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def files_fingerprint(paths: Iterable[str | Path], *, sample: int = 2**16) -> str:
    """Returns a digest of files' names, sizes, and first and last bytes.

    A file that is copied elsewhere keeps its fingerprint. Of a parquet file the last bytes tell what its columns hold.

    Args:
      paths: of the files, whose order counts.
      sample: bytes read at either end of a file.

    Returns:
      16 hexadecimal digits.

    Raises:
      OSError: a file cannot be read.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> _ = (folder / "a.txt").write_text("one"), (folder / "b.txt").write_text("one")
      >>> files_fingerprint([folder / "a.txt"]) == files_fingerprint([folder / "b.txt"])
      False
    """
    digest = hashlib.blake2b(digest_size=8)
    for path in map(Path, paths):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode(errors="surrogatepass"))
        with path.open("rb") as file:
            digest.update(file.read(sample))
            file.seek(max(size - sample, 0))
            digest.update(file.read(sample))
    return digest.hexdigest()
