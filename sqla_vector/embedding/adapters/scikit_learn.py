"""Text vectors by a fitted scikit-learn pipeline: offline, without a model to download."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sqla_vector.embedding.embedder import model_of
from sqla_vector.exc import EmbedderError

__all__ = ["ScikitLearnEmbedder"]


class ScikitLearnEmbedder:
    """An embedder over a fitted transformer of texts, such as TF-IDF followed by a truncated SVD (LSA).

    Args:
        transformer: anything with ``transform(texts)`` that returns an array of shape (len(texts), dimensions),
            dense or sparse.  It must be fitted.
        name: the model's name, for fingerprints.
        version: the model's version; give another one whenever the transformer is fitted anew.

    Raises:
        EmbedderError: the transformer is not fitted.
    """

    def __init__(self, transformer: Any, *, name: str, version: str) -> None:
        self._transformer = transformer
        self.name = name
        self.version = version
        try:
            self.dimensions = int(self._transformed(["text"]).shape[1])
        except Exception as error:
            raise EmbedderError(f"the transformer of {name} transforms no text; fit it first: {error}") from error
        model_of(self)

    def _transformed(self, texts: list[str]) -> NDArray[np.float32]:
        found = self._transformer.transform(texts)
        dense = found.toarray() if hasattr(found, "toarray") else found
        return np.asarray(dense, dtype=np.float32)

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        """Return the vectors of texts, float32 of shape (len(texts), dimensions)."""
        return self._transformed(texts)
