"""Embedders over what people use: scikit-learn, sentence-transformers, OpenAI-compatible servers, Ollama."""

from sqla_vector.embedding.adapters.ollama import OllamaEmbedder
from sqla_vector.embedding.adapters.openai import OpenAIEmbedder
from sqla_vector.embedding.adapters.scikit_learn import ScikitLearnEmbedder
from sqla_vector.embedding.adapters.sentence_transformers import SentenceTransformerEmbedder

__all__ = ["OllamaEmbedder", "OpenAIEmbedder", "ScikitLearnEmbedder", "SentenceTransformerEmbedder"]
