"""EmbeddingGemma 2 (config_sentence_transformers.json and the model's entry in mteb).

Media come before the text, as in the run of the model card and as everywhere in this library.
"""

from __future__ import annotations

from smart_jax.inputs.presets.preset import Preset
from smart_jax.inputs.settings import Settings

# What the model was trained to read for a query's task, by the names under which sentence-transformers has them.
TASKS = {
    "query": "search result",
    "SearchQuery": "search result",
    "Retrieval": "search result",
    "Retrieval-query": "search result",
    "Reranking": "search result",
    "BitextMining": "search result",
    "QuestionAnswering": "question answering",
    "FactChecking": "fact checking",
    "Classification": "classification",
    "MultilabelClassification": "classification",
    "Clustering": "clustering",
    "STS": "sentence similarity",
    "PairClassification": "sentence similarity",
    "SentenceSimilarity": "sentence similarity",
    "Summarization": "sentence similarity",
    "CodeRetrieval": "code retrieval",
    "InstructionRetrieval": "code retrieval",
}
_QUERY = f"task: {{{{ {TASKS!r}.get(instruction, instruction) }}}} | query: {{{{ text }}}}"
# A document with a title of its own comes as the model card writes it, "title: TITLE | text: TEXT".
_DOCUMENT = (
    "{% if text.startswith('title: ') and ' | text: ' in text %}{{ text }}"
    "{% else %}title: none | text: {{ text }}{% endif %}"
)

PRESETS: dict[str, Preset] = {
    "embedding_gemma2": Preset(
        Settings(
            prompt=(
                "{{ visual }}{% set text = texts | join(' ') %}"
                f"{{% if query %}}{_QUERY}{{% else %}}{_DOCUMENT}{{% endif %}}"
            ),
            pooling="mean_all",
            instructions="queries",
            default_instruction=None,
            query_instruction="search result",
            positions="sequential",
            min_pixels=None,
            max_pixels=None,
            fps=1.0,
            max_frames=32,
        ),
        ("embedding_gemma2",),
        r"embeddinggemma-?2",
        default=True,
    ),
}
