"""Embedders over what people use: scikit-learn, sentence-transformers, OpenAI-compatible servers, Ollama; rerankers."""

from sqla_vector.embedding.adapters.cross_encoder import CrossEncoderReranker
from sqla_vector.embedding.adapters.ollama import OllamaEmbedder
from sqla_vector.embedding.adapters.openai import OpenAIEmbedder
from sqla_vector.embedding.adapters.rerank import HttpReranker
from sqla_vector.embedding.adapters.scikit_learn import ScikitLearnEmbedder
from sqla_vector.embedding.adapters.sentence_transformers import SentenceTransformerEmbedder

__all__ = [
    "CrossEncoderReranker",
    "HttpReranker",
    "OllamaEmbedder",
    "OpenAIEmbedder",
    "ScikitLearnEmbedder",
    "SentenceTransformerEmbedder",
]
