"""Resident corpora: documents that stay on devices, so that a search sends them nothing but the queries."""

from __future__ import annotations

import dataclasses
import functools
import os

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Bool, Float

from smart_jax.notebook import facts_table
from smart_jax.retrieval.candidates import Candidates
from smart_jax.retrieval.embeddings import Embeddings
from smart_jax.retrieval.length_groups import LengthGroup
from smart_jax.retrieval.operands import Items, operands
from smart_jax.retrieval.resident_rows import device_bytes, device_groups, put_documents
from smart_jax.retrieval.resident_search import SPLIT, Documents, Numbers, fetched
from smart_jax.retrieval.streamed_search import document_mesh
from smart_jax.runtime import place
from smart_jax.typing import HostOrDevice

WORK_BYTES = 2**28  # of each device's memory that are left to the search


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Resident:
    """Documents on devices, in at most 8 groups of like length; `to_device` makes it.

    `smart_jax.search` and `smart_jax.score` take it where they take the documents' `Embeddings`.

    Attributes:
      documents: the arrays, each document padded to its group's longest; split over the devices.
      mesh: the devices in a row.
      kind: embeddings of no item, of the documents' widths, dtypes and provenance.
      count: number of documents.

    Example:
      >>> import numpy as np
      >>> from smart_jax import Embeddings, search, to_device
      >>> tokens = np.float32([[1, 0], [0, 1], [0.6, 0.8]])
      >>> documents = Embeddings(np.float32([[1, 0], [0, 1]]), tokens, [0, 1, 3])
      >>> resident = to_device(documents)
      >>> resident
      Resident(2 items in groups of 2 x 8 tokens on 1 device, pooled width 2, token width 2, float32)
      >>> search(documents[1], resident, k=1)
      (array([[2.]], dtype=float32), array([[1]]))
    """

    documents: Documents
    mesh: Mesh
    kind: Embeddings
    count: int

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        shapes = [np.shape(group.tokens) for group in self.documents.groups if group.tokens is not None]
        groups = ", ".join(f"{rows} x {length}" for rows, length, _ in shapes)
        return (
            f"Resident({len(self)} items in groups of {groups or 0} tokens on {self.mesh.size} "
            f"device{'s' * (self.mesh.size > 1)}, pooled width {self.kind.pooled.shape[1]}, "
            f"token width {self.kind.tokens.shape[1]}, {self.dtype})"
        )

    def _repr_html_(self) -> str:
        facts = {
            "items": len(self),
            "devices": self.mesh.size,
            "groups of like length": len(self.documents.groups),
            "widths": f"{self.kind.pooled.shape[1]} pooled, {self.kind.tokens.shape[1]} tokens",
            "dtype": self.dtype,
        }
        return facts_table("Resident", facts)

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the tokens."""
        return self.kind.dtype

    @property
    def nbytes(self) -> int:
        """Number of bytes of the arrays on all devices together, padding included."""
        return sum(x.nbytes for x in jax.tree.leaves(self.documents))

    @functools.cached_property
    def items(self) -> Numbers:
        """Numbers of each group's documents, on the host; `NO_ITEM` in an empty row."""
        return tuple(fetched(group.items) for group in self.documents.groups)

    @functools.cached_property
    def lengths(self) -> Numbers:
        """Number of tokens of each group's documents, on the host; 0 in an empty row."""
        return tuple(fetched(group.lengths) for group in self.documents.groups)

    def allowed(self, allow: Bool[np.ndarray, " Nd"] | None) -> Documents:
        """Returns the documents, with empty rows in the place of those that may not be found; None = all may be."""
        if allow is None:
            return self.documents
        sharding, may = NamedSharding(self.mesh, SPLIT), np.append(allow, False)
        groups = tuple(
            dataclasses.replace(group, lengths=place(lengths * may[np.minimum(items, len(self))], sharding))
            for group, lengths, items in zip(self.documents.groups, self.lengths, self.items, strict=True)
        )
        return Documents(self.documents.pooled, groups)


def to_device(embeddings: Embeddings, mesh: Mesh | None = None) -> Resident:
    """Puts documents on devices, where they stay: a search sends them nothing but queries, and fetches only results.

    Documents are grouped by length, at most 8 groups, so that padding adds little; each device gets equally many of
    each group. Only a piece is padded on the host at a time, so that embeddings may be mapped from a file
    (`Embeddings.load(folder, mmap=True)`) that is larger than its memory.

    It pays on accelerators, whose memory is far faster than the way from the host. On a CPU a search takes about as
    long as one of the embeddings themselves, of short documents a quarter less, and the documents are held twice.

    Args:
      embeddings: the documents, of any dtype. A TPU multiplies bfloat16 or int8 tokens with bfloat16 queries
        (`queries.astype("bfloat16")`) in one pass, with float32 ones in three, which takes longer from about 80 query
        tokens on.
      mesh: the devices, from `make_mesh`; None = the default device. With several processes all pass the same
        arguments, and each reads its own devices' documents.

    Raises:
      TypeError: other input than `Embeddings`.
      ValueError: a device has too little memory; the message says how much is needed.

    Example:
      >>> import numpy as np
      >>> from smart_jax import Embeddings, make_mesh, search, to_device
      >>> vectors = np.float32([[0, 1], [1, 0], [0.6, 0.8]])
      >>> documents = Embeddings(vectors, vectors, [0, 1, 2, 3])
      >>> resident = to_device(documents.astype("int8"), make_mesh())
      >>> scores, indices = search(documents[:1], resident, k=2, rescore=documents)
      >>> indices
      array([[0, 2]])
    """
    if not isinstance(embeddings, Embeddings):
        raise TypeError(f"to_device takes Embeddings, not {type(embeddings).__name__}: encode documents, or make such")
    devices = document_mesh(mesh)
    groups = device_groups(embeddings.lengths, embeddings.dtype, devices)
    _check_memory(embeddings, groups, devices)
    return Resident(put_documents(embeddings, groups, devices), devices, empty_like(embeddings), len(embeddings))


def resident_operands(
    q: Items,
    d: Resident,
    pooled_weight: float,
    late_weight: float,
    q_mask: Bool[HostOrDevice, "Nq P"] | None,
    d_mask: Bool[HostOrDevice, "Nd L"] | None,
    candidates: Candidates | None,
    force: bool,
) -> tuple[Embeddings, Float[np.ndarray, " 2"]]:
    """Returns the queries and the weights, checked as `operands` checks them.

    Raises:
      TypeError, ValueError: as `operands`; q is on devices, or candidates are given.
    """
    if isinstance(q, Resident):
        raise TypeError("q is a Resident, which only documents can be: pass the Embeddings of the queries")
    if candidates is not None:
        raise ValueError("candidates are given with a Resident: pass the Embeddings, of which no others are read")
    queries, _, weights = operands(q, d.kind, pooled_weight, late_weight, q_mask, d_mask, force=force)
    return queries, weights


def empty_like(embeddings: Embeddings) -> Embeddings:
    """Returns embeddings of no item, of the same kind, that keep nothing of the others alive."""
    pooled, tokens, scales = embeddings.pooled, embeddings.tokens, embeddings.scales
    return Embeddings.from_checked(
        np.empty((0, pooled.shape[1]), pooled.dtype),
        np.empty((0, tokens.shape[1]), tokens.dtype),
        np.zeros(1, np.int64),
        None if scales is None else np.empty(0, np.float32),
        embeddings.provenance,
    )


def _check_memory(embeddings: Embeddings, groups: list[LengthGroup], mesh: Mesh) -> None:
    """Raises ValueError if the documents do not fit in a device's free memory."""
    needed = WORK_BYTES + device_bytes(embeddings, groups, mesh)
    for device in mesh.devices:
        if device.process_index == jax.process_index() and needed > (free := _free_bytes(device, mesh)):
            raise ValueError(
                f"{embeddings!r} needs {needed} bytes on each of {mesh.size} devices, and {device} has {free}: "
                'store it as int8 (.astype("int8")), use more devices (mesh=), make it smaller '
                "(smart_jax.reductions), or pass the Embeddings themselves to search, which streams them"
            )


def _free_bytes(device: jax.Device, mesh: Mesh) -> int:
    """Returns how much of a device's memory is free; of a host's, which devices share, a part of all that there is."""
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))
    sharing: int = sum(other.process_index == device.process_index for other in mesh.devices)
    memory: int = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return memory // sharing
