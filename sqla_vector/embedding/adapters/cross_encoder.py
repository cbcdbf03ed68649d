"""Scores of texts for a query by a cross-encoder of sentence-transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sqla_vector.exc import ExtensionMissing
from sqla_vector.schema import check_whole_number

__all__ = ["CrossEncoderReranker"]


class CrossEncoderReranker:
    """A reranker over a ``CrossEncoder`` of sentence-transformers, for :func:`sqla_vector.search`.

    Args:
        model: a ``CrossEncoder`` with one score for a pair, or the name or path of one, which is loaded then.
        name: what messages call it; by default the name it is loaded by.
        batch_size: pairs that the model looks at at once.

    Raises:
        ExtensionMissing: sentence-transformers is not installed.
        InvalidOption: an option out of its range.

    Source: Nogueira and Cho, *Passage re-ranking with BERT*, 2019.
    """

    def __init__(self, model: Any, *, name: str | None = None, batch_size: int = 32) -> None:
        self._batch_size = check_whole_number(batch_size, "batch_size", 1, 100_000)
        self.name = name or (model if isinstance(model, str) else type(model).__name__)
        self._model = _load(model) if isinstance(model, str) else model

    def __repr__(self) -> str:
        return f"CrossEncoderReranker({self.name!r})"

    def score(self, query: str, texts: list[str]) -> NDArray[Any]:
        """Return a score for each text, larger is better."""
        if not texts:
            return np.empty(0, np.float32)
        pairs = [(query, text) for text in texts]
        return np.asarray(self._model.predict(pairs, batch_size=self._batch_size, show_progress_bar=False))


def _load(name: str) -> Any:
    try:
        from sentence_transformers import CrossEncoder
    except ImportError as error:
        raise ExtensionMissing(
            "CrossEncoderReranker needs sentence-transformers: pip install sentence-transformers"
        ) from error
    return CrossEncoder(name)
