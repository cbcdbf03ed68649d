"""Embeddings that follow their text: declaration, fingerprints, embedders."""

from sqla_vector.embedding.declaration import EmbeddedColumn, EmbeddingSpec, embedded_columns, embedding_column
from sqla_vector.embedding.embedder import CallableEmbedder, Embedder, aembed, embed
from sqla_vector.embedding.fingerprint import Fingerprint, Model, fingerprint
from sqla_vector.embedding.source import SourceText

__all__ = [
    "CallableEmbedder",
    "EmbeddedColumn",
    "Embedder",
    "EmbeddingSpec",
    "Fingerprint",
    "Model",
    "SourceText",
    "aembed",
    "embed",
    "embedded_columns",
    "embedding_column",
    "fingerprint",
]
