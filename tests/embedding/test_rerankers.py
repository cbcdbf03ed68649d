"""Rerankers over HTTP and over a cross-encoder: whole answers or none."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from sqla_vector.embedding.adapters import CrossEncoderReranker, HttpReranker
from sqla_vector.exc import ExtensionMissing, InvalidOption, RerankerError, RerankerUnavailable
from sqla_vector.search import Hit, Reranker, rerank_hits
from tests.support.embedding_server import Answer, EmbeddingServer, running, score_of

KEY = "co-very-secret-4711"
TEXTS = ["cats", "trains", "", "katzen", "\0 nul", "‏שלום", "naïve", "naïve"]


@pytest.fixture
def server() -> Iterator[EmbeddingServer]:
    with running() as started:
        yield started


@pytest.fixture
def reranker(server: EmbeddingServer) -> Iterator[HttpReranker]:
    with HttpReranker("m", base_url=f"{server.url}/v2/", api_key=KEY, max_wait=0.01, attempts=2) as made:
        yield made


def test_each_text_gets_its_score(reranker: HttpReranker, server: EmbeddingServer):
    assert isinstance(reranker, Reranker)
    assert reranker.score("animals", TEXTS) == [score_of("animals", text) for text in TEXTS]
    ((path, headers, body),) = server.requests
    assert path == "/v2/rerank"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert body == {"model": "m", "query": "animals", "documents": TEXTS}
    assert KEY not in repr(reranker)


def test_requests_have_at_most_so_many_texts_and_keep_the_order(server: EmbeddingServer):
    with HttpReranker("m", base_url=server.url, max_texts=3) as reranker:
        assert reranker.score("q", TEXTS) == [score_of("q", text) for text in TEXTS]
        assert [len(body["documents"]) for _, _, body in server.requests] == [3, 3, 2]
        assert reranker.score("q", []) == []
        assert len(server.requests) == 3


def change_results(change: Any) -> Answer:
    return Answer(change=lambda body: {**body, "results": change(body["results"])})


@pytest.mark.parametrize(
    "change",
    [
        lambda results: results[1:],
        lambda results: [*results, results[0]],
        lambda results: [results[0], *results[:-1]],
        lambda results: [{**one, "index": one["index"] + 1} for one in results],
        lambda results: [{**one, "index": True} for one in results],
        lambda results: [{**one, "index": "0"} for one in results],
        lambda results: [{**one, "relevance_score": "0.5"} for one in results],
        lambda results: [{**one, "relevance_score": None} for one in results],
        lambda results: [{"index": one["index"]} for one in results],
        lambda results: [0.5 for _ in results],
        lambda results: {"0": 0.5},
        lambda results: None,
    ],
)
def test_an_answer_that_is_not_the_protocols_is_refused_whole(
    reranker: HttpReranker, server: EmbeddingServer, change: Any
):
    server.answers = [change_results(change)]
    with pytest.raises(RerankerError, match="answered w"):
        reranker.score("q", TEXTS)
    assert reranker.score("q", TEXTS) == [score_of("q", text) for text in TEXTS]


def test_nan_in_the_answer_reaches_no_hit(reranker: HttpReranker, server: EmbeddingServer):
    hits = [Hit(number, None, None, text, None) for number, text in enumerate(TEXTS)]
    nan = change_results(lambda results: [{**one, "relevance_score": float("nan")} for one in results])
    server.answers = [nan]
    with pytest.raises(RerankerError, match="NaN"):
        rerank_hits(hits, reranker, query="q")
    assert [hit.entity for hit in rerank_hits(hits, reranker, query="q", k=3)] == sorted(
        range(len(TEXTS)), key=lambda number: -score_of("q", TEXTS[number])
    )[:3]


def test_what_the_server_has_no_time_for_is_tried_again_then_unavailable(
    reranker: HttpReranker, server: EmbeddingServer
):
    server.answers = [Answer(status=503)]
    assert reranker.score("q", ["a"]) == [score_of("q", "a")]
    server.answers = [Answer(status=429, headers={"Retry-After": "7"})]
    with pytest.raises(RerankerUnavailable) as found:
        reranker.score("q", ["a"])
    assert found.value.retry_after == 7.0
    assert KEY not in str(found.value)


@pytest.mark.parametrize(("status", "error"), [(401, RerankerUnavailable), (400, RerankerError), (422, RerankerError)])
def test_a_refusal_is_an_error_without_the_key(
    reranker: HttpReranker, server: EmbeddingServer, status: int, error: type[Exception]
):
    server.answers = [Answer(status=status, body=f"no: {KEY}".encode())]
    with pytest.raises(error) as found:
        reranker.score("q", ["a"])
    assert type(found.value) is error
    assert KEY not in str(found.value)
    assert found.value.__cause__ is None


@pytest.mark.parametrize(
    "options",
    [
        {"model": ""},
        {"model": None},
        {"path": ""},
        {"path": "/"},
        {"path": "../rerank"},
        {"path": "rerank?x=1"},
        {"path": 1},
        {"max_texts": 0},
        {"base_url": "file:///etc/passwd"},
        {"base_url": "https://user:secret@example.org"},
        {"api_key": "key\n"},
    ],
    ids=str,
)
def test_an_option_that_is_none_is_refused(options: dict[str, Any]):
    given = {"model": "m", "base_url": "https://example.org/v1", **options}
    with pytest.raises(InvalidOption) as found:
        HttpReranker(given.pop("model"), **given)
    assert "secret" not in str(found.value)


class WordOverlap:
    """A model with the interface of sentence-transformers' CrossEncoder: words in common, by the words of the text."""

    def predict(self, pairs: list[tuple[str, str]], *, batch_size: int, show_progress_bar: bool) -> Any:
        assert batch_size == 2
        assert not show_progress_bar
        found = []
        for query, text in pairs:
            words = text.split()
            found.append(len(set(query.split()) & set(words)) / max(1, len(words)))
        return np.array(found, np.float32)


def test_a_cross_encoder_scores_pairs():
    reranker = CrossEncoderReranker(WordOverlap(), batch_size=2)
    assert isinstance(reranker, Reranker)
    assert reranker.score("red cat", ["a red cat", "red", "dog"]).tolist() == pytest.approx([2 / 3, 1, 0])
    assert reranker.score("red cat", []).shape == (0,)
    assert repr(reranker) == "CrossEncoderReranker('WordOverlap')"
    hits = [Hit(number, None, None, text, None) for number, text in enumerate(["a red cat", "red", "dog"])]
    found = rerank_hits(hits, reranker, query="red cat")
    assert [(hit.entity, hit.score) for hit in found] == [(1, 1.0), (0, pytest.approx(2 / 3)), (2, 0.0)]
    with pytest.raises(InvalidOption):
        CrossEncoderReranker(WordOverlap(), batch_size=0)


def test_without_sentence_transformers_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ExtensionMissing, match="pip install sentence-transformers"):
        CrossEncoderReranker("cross-encoder/ms-marco-MiniLM-L6-v2")
