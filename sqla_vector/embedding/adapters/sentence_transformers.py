"""Text vectors by a sentence-transformers model."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sqla_vector.embedding.embedder import model_of
from sqla_vector.exc import ExtensionMissing, InvalidOption
from sqla_vector.schema import check_whole_number

__all__ = ["SentenceTransformerEmbedder"]


class SentenceTransformerEmbedder:
    """An embedder over a sentence-transformers model.

    Args:
        model: a ``SentenceTransformer``, or the name or path of one, which is loaded then.
        name: the model's name for fingerprints; by default the name it is loaded by.
        version: the model's version, for example the revision of its weights.
        batch_size: texts that the model encodes at once.
        normalize: whether vectors are scaled to length 1.
        query_prefix: what the model wants before a query, such as ``"query: "``.

    Raises:
        ExtensionMissing: sentence-transformers is not installed.
        InvalidOption: a model without a name, or an option out of its range.
    """

    def __init__(
        self,
        model: Any,
        *,
        version: str,
        name: str | None = None,
        batch_size: int = 32,
        normalize: bool = True,
        query_prefix: str = "",
    ) -> None:
        if name is None and not isinstance(model, str):
            raise InvalidOption("give name=, by which fingerprints tell this model from others")
        self.name = name or str(model)
        self.version = version
        self.query_prefix = query_prefix
        self._batch_size = check_whole_number(batch_size, "batch_size", 1, 100_000)
        self._model = _load(model) if isinstance(model, str) else model
        self._normalize = normalize
        # get_embedding_dimension since sentence-transformers 5.4, where the older name warns.
        method = "get_embedding_dimension"
        read = getattr(self._model, method if hasattr(self._model, method) else "get_sentence_embedding_dimension")
        self.dimensions = read()
        model_of(self)

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        """Return the vectors of texts, float32 of shape (len(texts), dimensions)."""
        found = self._model.encode(
            texts,
            batch_size=self._batch_size,
            normalize_embeddings=self._normalize,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return np.asarray(found, dtype=np.float32)


def _load(name: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ExtensionMissing(
            "SentenceTransformerEmbedder needs sentence-transformers: pip install sentence-transformers"
        ) from error
    return SentenceTransformer(name)
