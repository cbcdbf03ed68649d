"""Long texts in chunks, each with a vector of its own, kept in step with the text."""

from sqla_vector.chunking.check import ChunkReport, ChunksOf, acheck_chunks, check_chunks
from sqla_vector.chunking.declaration import chunked
from sqla_vector.chunking.splitting import Chunk, by_sentences, by_tokens, words

__all__ = [
    "Chunk",
    "ChunkReport",
    "ChunksOf",
    "acheck_chunks",
    "by_sentences",
    "by_tokens",
    "check_chunks",
    "chunked",
    "words",
]
