"""Evidence: why a document has its score for a query, taken apart by token and drawn on its pages and texts."""

from smart_jax.evidence.comparison import Comparison, TokenDifference
from smart_jax.evidence.evidence import Evidence, TokenEvidence, Weights
from smart_jax.evidence.explain import explain
from smart_jax.evidence.layout import SHOWN
from smart_jax.evidence.marks import Box, Highlight, Moment
from smart_jax.evidence.pdf_page import PageText, page_scale
from smart_jax.evidence.similarities import Best, usual_cosines
from smart_jax.evidence.token_sources import Cell, Span, TokenSources
from smart_jax.evidence.traced import Traced, TracingModel, trace, trace_page

__all__ = [
    "SHOWN",
    "Best",
    "Box",
    "Cell",
    "Comparison",
    "Evidence",
    "Highlight",
    "Moment",
    "PageText",
    "Span",
    "TokenDifference",
    "TokenEvidence",
    "TokenSources",
    "Traced",
    "TracingModel",
    "Weights",
    "explain",
    "page_scale",
    "trace",
    "trace_page",
    "usual_cosines",
]
