"""Embedders over HTTP, against a server on this machine that answers well, badly, late or not at all."""

from __future__ import annotations

import gc
import gzip
import logging
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from email.utils import formatdate
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqla_vector.embedding import embed
from sqla_vector.embedding.adapters import OllamaEmbedder, OpenAIEmbedder
from sqla_vector.embedding.adapters.http import HttpEmbedder, batches, estimate_tokens
from sqla_vector.exc import EmbedderError, EmbedderUnavailable, ExtensionMissing, InvalidOption
from tests.support.embedding_server import DIMENSIONS, Answer, EmbeddingServer, running, vector_of

KEY = "sk-very-secret-4711"
TEXTS = ["cats", "trains", "", "katzen", "\0 nul", "‏שלום", "naïve", "naïve"]


@pytest.fixture
def server() -> Iterator[EmbeddingServer]:
    with running() as started:
        yield started


Make = Callable[..., HttpEmbedder]


@pytest.fixture(params=["openai", "ollama"])
def make(request: pytest.FixtureRequest, server: EmbeddingServer) -> Iterator[Make]:
    """Make an embedder of either protocol on the server, quick to try again, closed in the end."""
    made: list[HttpEmbedder] = []

    def make_(**options: Any) -> HttpEmbedder:
        options = {"max_wait": 0.01, "attempts": 3, "dimensions": DIMENSIONS, "api_key": KEY, **options}
        if request.param == "openai":
            made.append(OpenAIEmbedder("m", base_url=options.pop("base_url", f"{server.url}/v1/"), **options))
        else:
            made.append(OllamaEmbedder("m", base_url=options.pop("base_url", server.url), **options))
        return made[-1]

    yield make_
    for embedder in made:
        embedder.close()


def expected(texts: list[str]) -> list[list[float]]:
    return [vector_of(text).tolist() for text in texts]


def test_each_text_gets_its_vector(make: Make, server: EmbeddingServer):
    found = make().embed(TEXTS)
    assert found.dtype == np.float32
    assert found.tolist() == expected(TEXTS)
    path, headers, body = server.requests[0]
    assert path in ("/v1/embeddings", "/api/embed")
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert body["model"] == "m"


def test_no_text_is_no_request(make: Make, server: EmbeddingServer):
    assert make().embed([]).shape == (0, DIMENSIONS)
    assert server.requests == []


def test_requests_have_at_most_so_many_texts_and_keep_the_order(make: Make, server: EmbeddingServer):
    texts = [f"text {number}" for number in range(10)]
    assert make(max_texts=4).embed(texts).tolist() == expected(texts)
    assert [len(batch) for batch in server.batches] == [4, 4, 2]


def test_requests_keep_the_budget_of_tokens(server: EmbeddingServer):
    texts = ["a", "bb", "cccccc", "d", "e"]
    url = server.url
    with OpenAIEmbedder("m", dimensions=DIMENSIONS, base_url=url, max_tokens=3, count_tokens=len) as embedder:
        assert embedder.embed(texts).tolist() == expected(texts)
    # One text over the budget goes alone: whether it is too long is for the server to say.
    assert server.batches == [["a", "bb"], ["cccccc"], ["d", "e"]]


@given(st.lists(st.text(max_size=9)), st.integers(1, 5), st.none() | st.integers(1, 12))
def test_batches_keep_order_and_budgets(texts: list[str], max_texts: int, max_tokens: int | None):
    parts = list(batches(texts, max_texts, max_tokens, len))
    assert [text for part in parts for text in part] == texts
    assert all(0 < len(part) <= max_texts for part in parts)
    if max_tokens is not None:
        assert all(len(part) == 1 or sum(map(len, part)) <= max_tokens for part in parts)


def test_tokens_are_estimated_by_bytes():
    assert estimate_tokens("") == 1
    assert estimate_tokens("a" * 40) == 11
    assert estimate_tokens("猫" * 40) == 31


def test_a_server_without_base64_may_answer_in_numbers(server: EmbeddingServer):
    server.knows_base64 = False
    with OpenAIEmbedder("m", dimensions=DIMENSIONS, base_url=server.url) as embedder:
        assert embedder.embed(TEXTS).tolist() == expected(TEXTS)
    assert server.requests[0][2]["encoding_format"] == "base64"
    assert "Authorization" not in server.requests[0][1]


def test_a_server_that_refuses_base64_is_asked_for_numbers(server: EmbeddingServer):
    options: dict[str, Any] = {"encoding_format": "float", "send_dimensions": True}
    with OpenAIEmbedder("m", dimensions=DIMENSIONS, base_url=server.url, **options) as embedder:
        assert embedder.embed(["cats"]).tolist() == expected(["cats"])
    body = server.requests[0][2]
    assert (body["encoding_format"], body["dimensions"]) == ("float", DIMENSIONS)


def test_ollama_is_told_not_to_cut_texts(server: EmbeddingServer):
    with OllamaEmbedder("m", dimensions=DIMENSIONS, base_url=server.url) as embedder:
        embedder.embed(["cats"])
    assert server.requests[0][2] == {"model": "m", "input": ["cats"], "truncate": False}


PASSING = {
    "too many requests": [Answer(429, {"Retry-After": "0"})],
    "a date in the past": [Answer(429, {"Retry-After": formatdate(time.time() - 60, usegmt=True)})],
    "a date without a zone": [Answer(429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 -0000"})],
    "nonsense to wait for": [Answer(429, {"Retry-After": "²"}), Answer(503, {"Retry-After": "soon"})],
    "broken twice": [Answer(500), Answer(502, body=b"<html>")],
    "overloaded": [Answer(529)],
    "a truncated body": [Answer(cut=True)],
    "a truncated error": [Answer(400, cut=True)],
}


@pytest.mark.parametrize("answers", PASSING.values(), ids=PASSING.keys())
def test_what_passes_is_tried_again(make: Make, server: EmbeddingServer, answers: list[Answer]):
    count = len(answers)
    server.answers = list(answers)
    assert make().embed(["cats", "trains"]).tolist() == expected(["cats", "trains"])
    assert server.batches == [["cats", "trains"]] * (count + 1)


def test_a_request_is_made_so_often_and_no_more(make: Make, server: EmbeddingServer):
    server.answers = [Answer(500)] * 9
    with pytest.raises(EmbedderUnavailable, match="answered 500"):
        make(attempts=4).embed(["cats"])
    assert len(server.requests) == 4


def test_only_the_request_that_failed_is_repeated(make: Make, server: EmbeddingServer):
    server.answers = [Answer(), Answer(503)]
    make(max_texts=1).embed(["a", "b", "c"])
    assert server.batches == [["a"], ["b"], ["b"], ["c"]]


@pytest.mark.parametrize(
    "asked", ["3600", "9" * 400, formatdate(time.time() + 86_400, usegmt=True)], ids=["hour", "eternity", "date"]
)
def test_a_server_that_asks_to_wait_too_long_is_left_alone(make: Make, server: EmbeddingServer, asked: str):
    server.answers = [Answer(429, {"Retry-After": asked})]
    with pytest.raises(EmbedderUnavailable) as caught:
        make(max_wait=60.0).embed(["cats"])
    assert len(server.requests) == 1
    assert caught.value.retry_after is not None
    assert caught.value.retry_after > 3000


@pytest.mark.parametrize("status", [301, 400, 413, 422])
def test_a_refused_text_is_not_sent_again(make: Make, server: EmbeddingServer, status: int):
    server.answers = [Answer(status, body=b'{"error": "the text is too long"}')]
    with pytest.raises(EmbedderError, match=f"refused the request, {status}.*too long") as caught:
        make().embed(["cats"])
    assert not isinstance(caught.value, EmbedderUnavailable)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_a_refused_key_or_model_blames_no_text(make: Make, server: EmbeddingServer, status: int):
    server.answers = [Answer(status, body=f"wrong key {KEY}".encode())]
    with pytest.raises(EmbedderUnavailable, match=f"refused the request, {status}") as caught:
        make().embed(["cats"])
    assert len(server.requests) == 1
    assert KEY not in str(caught.value)


def test_a_server_that_hangs_is_given_up(make: Make, server: EmbeddingServer):
    server.answers = [Answer(hang=True)] * 2
    with pytest.raises(EmbedderUnavailable, match="did not answer in time"):
        make(timeout=0.05, attempts=2).embed(["cats"])
    assert len(server.requests) == 2


def test_a_server_that_drips_is_given_up(make: Make, server: EmbeddingServer):
    server.answers = [Answer(drip=True)]
    with pytest.raises(EmbedderUnavailable, match="did not answer in time"):
        make(timeout=0.2, attempts=1).embed(["cats"])


def test_a_server_that_is_not_there(make: Make):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(EmbedderUnavailable, match="cannot be reached: ConnectError"):
        make(base_url=f"http://127.0.0.1:{port}").embed(["cats"])


def _items(change: Callable[[list[Any]], Any]) -> Callable[[Any], Any]:
    """Apply a change to the vectors in an answer of either protocol."""

    def changed(answer: Any) -> Any:
        if "embeddings" in answer:
            return {**answer, "embeddings": change(answer["embeddings"])}
        items = sorted(answer["data"], key=lambda item: item["index"])
        vectors = change([np.frombuffer(_base64(item["embedding"]), "<f4").tolist() for item in items])
        return {**answer, "data": [{"index": n, "embedding": v} for n, v in enumerate(vectors)]}

    return changed


def _base64(text: str) -> bytes:
    import base64

    return base64.b64decode(text)


WRONG = {
    "one too few": Answer(change=_items(lambda vs: vs[:-1])),
    "one too many": Answer(change=_items(lambda vs: [*vs, vs[0]])),
    "none": Answer(change=_items(lambda vs: [])),
    "a dimension too many": Answer(change=_items(lambda vs: [[*v, 0.5] for v in vs])),
    "ragged": Answer(change=_items(lambda vs: [vs[0][:-1], *vs[1:]])),
    "NaN": Answer(change=_items(lambda vs: [[float("nan")] * DIMENSIONS, *vs[1:]])),
    "infinity": Answer(change=_items(lambda vs: [[float("inf")] * DIMENSIONS, *vs[1:]])),
    "too large for float32": Answer(change=_items(lambda vs: [[1e39] * DIMENSIONS, *vs[1:]])),
    "null": Answer(change=_items(lambda vs: [None, *vs[1:]])),
    "a null inside": Answer(change=_items(lambda vs: [[None] * DIMENSIONS, *vs[1:]])),
    "a number": Answer(change=_items(lambda vs: [5, *vs[1:]])),
    "an object": Answer(change=_items(lambda vs: [{"a": 1}, *vs[1:]])),
    "booleans": Answer(change=_items(lambda vs: [[True] * DIMENSIONS, *vs[1:]])),
    "texts": Answer(change=_items(lambda vs: [["1"] * DIMENSIONS, *vs[1:]])),
    "a list": Answer(change=lambda answer: [1, 2]),
    "nothing": Answer(change=lambda answer: None),
    "an empty object": Answer(change=lambda answer: {}),
    "not JSON": Answer(body=b"<html>maintenance</html>"),
    "no bytes": Answer(body=b""),
    "not UTF-8": Answer(body=b'{"embeddings": "\xff"}'),
    "nested beyond reason": Answer(body=b"[" * 200_000),
    "huge": Answer(body=b" " * 3_000_000),
    "huge when unpacked": Answer(headers={"Content-Encoding": "gzip"}, body=gzip.compress(b" " * 50_000_000)),
}


@pytest.mark.parametrize("answer", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_answer_is_refused_as_a_whole(make: Make, server: EmbeddingServer, answer: Answer):
    server.answers = [answer]
    with pytest.raises(EmbedderError) as caught:
        embed(make(), ["cats", "trains"])
    assert not isinstance(caught.value, EmbedderUnavailable)
    assert len(str(caught.value)) < 1_000
    assert len(server.requests) == 1


NUMBERED = {
    "twice the same": [0, 0],
    "from one": [1, 2],
    "by text": ["0", 1],
    "not at all": None,
}


@pytest.mark.parametrize("numbers", NUMBERED.values(), ids=NUMBERED.keys())
def test_vectors_whose_texts_are_not_known_are_refused(server: EmbeddingServer, numbers: list[Any] | None):
    def change(answer: Any) -> Any:
        for position, item in enumerate(answer["data"]):
            if numbers is None:
                del item["index"]
            else:
                item["index"] = numbers[position]
        return answer

    server.answers = [Answer(change=change)]
    with (
        OpenAIEmbedder("m", dimensions=DIMENSIONS, base_url=server.url) as embedder,
        pytest.raises(EmbedderError, match=r"numbered|no list"),
    ):
        embedder.embed(["cats", "trains"])


@pytest.mark.parametrize("vector", ["AAAA", "A", "*" * 24, "AAAAAAAA"])
def test_broken_base64_is_refused(server: EmbeddingServer, vector: str):
    server.answers = [Answer(change=lambda answer: {"data": [{"index": 0, "embedding": vector}]})]
    with (
        OpenAIEmbedder("m", dimensions=DIMENSIONS, base_url=server.url) as embedder,
        pytest.raises(EmbedderError),
    ):
        embedder.embed(["cats"])


def _reachable(error: BaseException | None) -> Iterator[str]:
    """Yield everything that a tool which collects errors would show: messages, and variables of every frame."""
    seen: set[int] = set()
    pending = [error]
    while pending:
        one = pending.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield "".join(traceback.format_exception(one))
        for frame, _ in traceback.walk_tb(one.__traceback__):
            # Their objects mask the header when they are printed, and have it all the same.
            assert "httpx" not in frame.f_code.co_filename
            assert "httpcore" not in frame.f_code.co_filename
            if frame.f_code.co_filename != __file__:
                yield from (repr(value) for value in frame.f_locals.values())
        pending += [one.__cause__, one.__context__]


FAILING = {
    "refused": Answer(401, body=f"Bearer {KEY}".encode()),
    "unavailable": Answer(503, body=KEY.encode()),
    "text refused": Answer(400, body=KEY.encode()),
    "cut": Answer(cut=True),
    "hangs": Answer(hang=True),
    "no JSON": Answer(body=KEY.encode()),
}


@pytest.mark.parametrize("answer", FAILING.values(), ids=FAILING.keys())
def test_the_key_is_shown_nowhere(
    make: Make, server: EmbeddingServer, answer: Answer, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    server.answers = [answer] * 2
    embedder = make(attempts=2, timeout=0.3)
    with pytest.raises(EmbedderError) as caught:
        embed(embedder, ["cats"])
    shown = [*_reachable(caught.value), repr(embedder), str(vars(embedder)), caplog.text]
    assert not [text for text in shown if KEY in text]
    assert "cats" not in caplog.text


@pytest.mark.parametrize("key", ["", f"{KEY}\n", f" {KEY}", "sk-ключ", f"{KEY}\r\nHost: evil", f"{KEY}\0", 5, b"sk"])
def test_a_key_that_cannot_be_sent_is_refused_without_being_shown(make: Make, key: Any):
    with pytest.raises(InvalidOption, match="api_key must be a text of ASCII") as caught:
        make(api_key=key)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://host/",
        "host/v1",
        "",
        "http://",
        "http://[::1",
        "http://host:port/",
        "http://host:99999/",
        None,
        5,
    ],
)
def test_what_is_no_url_is_refused(make: Make, url: Any):
    with pytest.raises(InvalidOption, match="base_url must be an http or https URL"):
        make(base_url=url)


@pytest.mark.parametrize("url", [f"https://user:{KEY}@host/v1", f"https://{KEY}@host", f"https://host/v1?key={KEY}"])
def test_a_url_with_a_secret_is_refused_without_showing_it(make: Make, url: str):
    with pytest.raises(InvalidOption, match="base_url of host must") as caught:
        make(base_url=url)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "option",
    [
        {"max_texts": 0},
        {"max_texts": True},
        {"attempts": 0},
        {"attempts": -1},
        {"attempts": 2.5},
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"timeout": "3"},
        {"timeout": None},
        {"max_wait": float("inf")},
        {"dimensions": 0},
        {"dimensions": "3"},
        {"version": "a:b"},
    ],
    ids=str,
)
def test_an_option_out_of_its_range_is_refused(make: Make, option: dict[str, Any]):
    with pytest.raises(InvalidOption):
        make(**option)


def test_an_unknown_encoding_is_refused():
    unknown: Any = "hex"
    with pytest.raises(InvalidOption, match="encoding_format"):
        OpenAIEmbedder("m", dimensions=3, encoding_format=unknown)
    with pytest.raises(InvalidOption, match="max_tokens"):
        OpenAIEmbedder("m", dimensions=3, max_tokens=0)


def test_the_repr_tells_the_model_and_the_server(make: Make, server: EmbeddingServer):
    shown = repr(make())
    assert "'m'" in shown
    assert server.url in shown
    assert server.url in repr(make()._client)


def test_an_embedder_that_is_forgotten_leaves_no_connection_open(server: EmbeddingServer):
    # An open socket would be a ResourceWarning, which fails the test.
    embedder = OpenAIEmbedder("m", dimensions=DIMENSIONS, base_url=server.url)
    embedder.embed(["cats"])
    del embedder
    gc.collect()


def test_a_closed_embedder_says_so(server: EmbeddingServer):
    with OpenAIEmbedder("m", dimensions=DIMENSIONS, base_url=server.url) as embedder:
        pass
    with pytest.raises(EmbedderError, match="closed"):
        embed(embedder, ["cats"])


def test_without_httpx_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(ExtensionMissing, match=r"pip install 'sqla-vector\[http\]'"):
        OpenAIEmbedder("m", dimensions=3)
