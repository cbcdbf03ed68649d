"""What an embedder says goes to logs and outboxes; what it was given does not."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqla_vector.embedding import CallableEmbedder, aembed, embed
from sqla_vector.embedding.adapters import OpenAIEmbedder
from sqla_vector.embedding.quoting import without_texts
from sqla_vector.exc import EmbedderError, EmbedderUnavailable
from tests.support.embedding_server import DIMENSIONS, Answer, running

SECRET = 'The patient "Jane Dœ" was\nadmitted on Monday with a fracture.'


@pytest.mark.parametrize(
    "written",
    [str, repr, json.dumps, lambda text: text[5:40], lambda text: text[-16:], lambda text: repr(json.dumps(text))],
)
def test_a_quotation_is_left_out_and_the_rest_stays(written: Any) -> None:
    said = without_texts(f"cannot embed {written(SECRET)}: it has 99 tokens", ["other", SECRET])
    assert "[…]" in said
    assert "Jane" not in said
    assert "fracture" not in said
    assert "cannot embed" in said
    assert "99 tokens" in said


def test_a_short_text_is_left_out_as_a_whole() -> None:
    assert without_texts("refused 'HIV positive', sorry", ["HIV positive"]) == "refused '[…]', sorry"


def test_a_message_about_other_things_stays_as_it_is() -> None:
    message = "the maximum length is 8192 tokens, and this text has 9,000"
    assert without_texts(message, [SECRET, "a"]) == message
    assert len(without_texts("x" * 5000, [SECRET])) == 1000


@given(st.text(max_size=60), st.text(max_size=40), st.text(max_size=40), st.sampled_from([str, repr, json.dumps]))
def test_no_long_run_of_a_text_is_in_a_message(text: str, before: str, after: str, written: Any) -> None:
    said = without_texts(before + written(text) + after, [text])
    letters = "".join(character for character in text if character.isalnum() and character.isascii())
    assert len(letters) < 12 or "\\" in text or letters not in "".join(c for c in said if c.isalnum())


@given(st.text(max_size=300))
def test_a_message_without_quotations_is_not_changed(message: str) -> None:
    assert without_texts(message, ["zzzzzzzzzzzzzzzzzzzzzz", "  ", ""]) == message


def test_no_error_of_an_embedder_quotes_what_it_was_given() -> None:
    def fail(texts: list[str]) -> Any:
        raise ValueError(f"cannot embed {texts[0]!r}")

    def echo(texts: list[str]) -> Any:
        return texts

    for function in (fail, echo):
        embedder = CallableEmbedder(function, name="echo", version="1", dimensions=2)
        for call in (lambda e=embedder: embed(e, [SECRET]), lambda e=embedder: asyncio.run(aembed(e, [SECRET]))):
            with pytest.raises(EmbedderError) as caught:
                call()
            assert "Jane" not in str(caught.value)
            assert "fracture" not in str(caught.value)
            assert "echo" in str(caught.value)


@pytest.mark.parametrize("status", [400, 403, 500])
def test_a_server_that_repeats_the_text_is_not_quoted(status: int) -> None:
    with running() as server:
        body = json.dumps({"error": {"message": f"bad input: {SECRET}", "code": 17}}).encode()
        server.answers.extend([Answer(status=status, body=body)] * 2)
        remote = OpenAIEmbedder("remote", dimensions=DIMENSIONS, base_url=server.url, attempts=1)
        with remote, pytest.raises(EmbedderError) as caught:
            embed(remote, [SECRET])
    assert "Jane" not in str(caught.value)
    assert "fracture" not in str(caught.value)
    assert '"code": 17' in str(caught.value)
    assert isinstance(caught.value, EmbedderUnavailable) == (status != 400)
