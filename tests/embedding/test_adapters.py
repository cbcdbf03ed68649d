"""Embedders over models that run in this process."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer, TfidfVectorizer
from sklearn.pipeline import make_pipeline

from sqla_vector.embedding import Embedder, embed
from sqla_vector.embedding.adapters import ScikitLearnEmbedder, SentenceTransformerEmbedder
from sqla_vector.exc import EmbedderError, ExtensionMissing, InvalidOption

TEXTS = ["cats purr and sleep", "cats and dogs sleep", "trains run on rails", "rails carry trains"]


def fitted(texts: list[str] = TEXTS) -> Any:
    return make_pipeline(TfidfVectorizer(), TruncatedSVD(2, random_state=0)).fit(texts)


def test_a_fitted_pipeline_is_an_embedder():
    embedder = ScikitLearnEmbedder(fitted(), name="lsa", version="2024-01")
    assert isinstance(embedder, Embedder)
    assert embedder.dimensions == 2
    vectors = embed(embedder, TEXTS)
    similar = vectors @ vectors.T
    assert similar[0, 1] > similar[0, 2]
    assert similar[2, 3] > similar[2, 1]


def test_unknown_words_have_the_zero_vector():
    assert embed(ScikitLearnEmbedder(fitted(), name="lsa", version="1"), ["xyzzy"]).tolist() == [[0, 0]]


def test_a_sparse_result_is_made_dense():
    embedder = ScikitLearnEmbedder(HashingVectorizer(n_features=16), name="hashing", version="1")
    assert embedder.dimensions == 16
    assert np.allclose(np.linalg.norm(embed(embedder, TEXTS), axis=1), 1)


def test_a_pipeline_that_is_not_fitted_is_refused():
    with pytest.raises(EmbedderError, match="the transformer of lsa transforms no text; fit it first"):
        ScikitLearnEmbedder(make_pipeline(TfidfVectorizer(), TruncatedSVD(2)), name="lsa", version="1")
    with pytest.raises(EmbedderError, match="transforms no text"):
        ScikitLearnEmbedder(None, name="lsa", version="1")
    with pytest.raises(InvalidOption, match="version"):
        ScikitLearnEmbedder(fitted(), name="lsa", version="a:b")


def test_without_sentence_transformers_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ExtensionMissing, match="pip install sentence-transformers"):
        SentenceTransformerEmbedder("all-MiniLM-L6-v2", version="1")


def test_a_loaded_sentence_transformer_needs_a_name():
    with pytest.raises(InvalidOption, match="give name="):
        SentenceTransformerEmbedder(object(), version="1")
    with pytest.raises(InvalidOption, match="batch_size"):
        SentenceTransformerEmbedder("all-MiniLM-L6-v2", version="1", batch_size=0)
