"""The search of a resident corpus without its arrays: what it takes of devices that need not be there."""

from __future__ import annotations

from typing import cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Int

from smart_jax.retrieval.block import Parts
from smart_jax.retrieval.embeddings import Embeddings
from smart_jax.retrieval.resident_rows import abstract_documents, device_groups
from smart_jax.retrieval.resident_search import WHOLE, kept_results, query_calls, search_program
from smart_jax.retrieval.streamed_search import document_mesh


def lower_search(
    queries: Embeddings, documents: Embeddings, lengths: Int[np.ndarray, " N"], mesh: Mesh, k: int = 10
) -> tuple[jax.stages.Lowered, int]:
    """Lowers `search(queries, to_device(...), k)`, to be compiled for devices that need not be there.

    Args:
      queries: at least one.
      documents: embeddings of the documents' widths and dtypes, of any number.
      lengths: number of tokens of each document.
      mesh: of devices, or of descriptions of some (`jax.experimental.topologies`).
      k: as in `search`.

    Returns:
      The program, and how often the search runs it. `.compile().memory_analysis()` tells bytes of a device: its
      documents are among the arguments.

    Example:
      >>> import numpy as np
      >>> from smart_jax import Embeddings, make_mesh
      >>> one = Embeddings(np.ones((1, 64), np.float16), np.ones((8, 64), np.float16), [0, 8])
      >>> lowered, calls = lower_search(one, one, np.full(1000, 40), make_mesh())
      >>> memory = lowered.compile().memory_analysis()
      >>> calls, memory.argument_size_in_bytes > 1000 * 40 * 64 * 2 // make_mesh().size
      (1, True)
    """
    devices, parts = document_mesh(mesh), Parts(pooled=True, late=True)
    groups = device_groups(lengths, documents.dtype, devices)
    abstract_d = abstract_documents(documents, groups, devices)
    plan = query_calls(queries, parts, abstract_d, devices)
    whole = NamedSharding(devices, WHOLE)

    def abstract(x: np.ndarray) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole)

    block, weights = jax.tree.map(abstract, (plan.block(plan.run(0, 0)), np.zeros(2, np.float32)))
    program = cast(jax.stages.Wrapped, search_program(devices))
    traced = program.trace(block, abstract_d, weights, kept=kept_results(k))
    return traced.lower(lowering_platforms=(devices.devices[0].platform,)), len(plan.runs[0])
