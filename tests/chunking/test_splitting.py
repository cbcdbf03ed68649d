"""From a text to its chunks."""

from __future__ import annotations

import itertools
import random
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqla_vector.chunking import by_sentences, by_tokens, words
from sqla_vector.chunking.rows import StoredChunk, changes
from sqla_vector.chunking.splitting import Chunk, chunks_of, sentences
from sqla_vector.exc import InvalidOption, InvalidText

TEXT = st.text(st.sampled_from("ab cd.!?\n\t\"')。é…"), max_size=200) | st.text(max_size=60)


def texts(text: str, splitter: Any) -> list[str]:
    return [chunk.text for chunk in chunks_of(text, splitter)]


def test_sentences_end_with_signs_and_with_lines() -> None:
    text = 'It is 3.5 m long. "Is it?" he asked... Yes!\nA line\n\n  Last one (really). 一。二'
    assert [text[start:end] for start, end in sentences(text)] == [
        "It is 3.5 m long.",
        '"Is it?"',
        "he asked...",
        "Yes!",
        "A line",
        "Last one (really).",
        "一。",
        "二",
    ]


def test_words_and_signs_are_tokens() -> None:
    text = "Don't! é_1 " + "x" * 120
    assert [text[start:end] for start, end in words(text)][:7] == ["Don", "'", "t", "!", "é_1", "x" * 50, "x" * 50]


@given(TEXT, st.integers(1, 6), st.data())
def test_chunks_of_sentences_cover_the_text_in_order(text: str, size: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, size - 1))
    _check(text, chunks_of(text, by_sentences(size, overlap)))
    parts = sentences(text)
    for chunk in chunks_of(text, by_sentences(size, overlap)):
        inside = [part for part in parts if chunk.start <= part[0] and part[1] <= chunk.end]
        assert len(inside) <= size
        assert (chunk.start, chunk.end) == (inside[0][0], inside[-1][1])


@given(TEXT, st.integers(1, 12), st.data())
def test_chunks_of_tokens_cover_the_text_in_order(text: str, size: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, size - 1))
    chunks = chunks_of(text, by_tokens(size, overlap))
    _check(text, chunks)
    tokens = words(text)
    counts = []
    for before, chunk in zip([None, *chunks], chunks, strict=False):
        inside = [number for number, token in enumerate(tokens) if chunk.start <= token[0] and token[1] <= chunk.end]
        counts.append(len(inside))
        if before is not None:
            repeated = sum(token[1] <= before.end for token in (tokens[number] for number in inside))
            assert repeated == min(overlap, sum(before.start < token[0] < before.end for token in tokens))
    assert all(count <= size for count in counts)


def _check(text: str, chunks: list[Chunk]) -> None:
    assert all(chunk.text == text[chunk.start : chunk.end] and chunk.text.strip() for chunk in chunks)
    assert [c.start for c in chunks] == sorted({c.start for c in chunks})
    assert [c.end for c in chunks] == sorted({c.end for c in chunks}), "no chunk is within another"
    covered = {at for chunk in chunks for at in range(chunk.start, chunk.end)}
    assert all(text[at].isspace() or not words(text[at]) for at in range(len(text)) if at not in covered)


def prose(seed: int, paragraphs: int, *, even: bool = False) -> list[str]:
    """Return paragraphs of words by chance; even ones have as many words each."""
    chance = random.Random(seed)
    word = lambda: "".join(chance.choices("abcdefghijklmn", k=chance.randint(2, 9)))  # noqa: E731
    sentence = lambda: " ".join(word() for _ in range(8 if even else chance.randint(4, 15))) + "."  # noqa: E731
    return [" ".join(sentence() for _ in range(3 if even else chance.randint(1, 7))) for _ in range(paragraphs)]


@pytest.mark.parametrize("splitter", [by_tokens(100, 10), by_tokens(60, 0), by_sentences(6, 1), by_sentences(4, 0)])
@pytest.mark.parametrize("even", [False, True])
def test_an_edit_changes_the_chunks_around_it_and_no_others(splitter: Any, even: bool) -> None:
    body = prose(1, 200, even=even)
    before = set(texts("\n\n".join(body), splitter))
    assert len(before) > 60
    new = prose(2, 1, even=even)
    for at in (0, 1, 57, 200):
        after = texts("\n\n".join(body[:at] + new + body[at:]), splitter)
        assert len(set(after) - before) <= 8, at
        assert len(before - set(after)) <= 8, at
    without = texts("\n\n".join(body[1:]), splitter)
    assert len(set(without) - before) <= 8


def test_a_text_without_sentences_is_cut_between_tokens_and_stays_cut_there() -> None:
    body = " ".join("".join(random.Random(n).choices("abcdefgh", k=6)) for n in range(2000))
    before = texts(body, by_tokens(50, 5))
    assert max(len(words(chunk)) for chunk in before) == 50
    assert len(set(texts("one more " + body, by_tokens(50, 5))) - set(before)) <= 8


def test_chunks_end_where_paragraphs_end_if_they_can() -> None:
    text = "One. Two. Three.\n\nFour. Five.\n \nSix. Seven. Eight. Nine."
    assert texts(text, by_sentences(4, 0)) == ["One. Two. Three.", "Four. Five.", "Six. Seven. Eight. Nine."]
    assert texts(text, by_sentences(4, 1))[1] == "Three.\n\nFour. Five."


@pytest.mark.parametrize(
    "text",
    [
        "x" * 200_000,
        "a" + " " * 200_000 + "b",
        "." * 50_000,
        "\n" * 200_000,
        '"' * 50_000,
        "。" * 50_000,
        ". " * 50_000,
    ],
    ids=["letters", "spaces", "dots", "lines", "quotes", "ideographic", "sentences"],
)
def test_what_is_no_prose_takes_no_time_to_speak_of(text: str) -> None:
    for splitter in (by_tokens(200, 20), by_sentences(5, 1)):
        assert all(chunk.text == text[chunk.start : chunk.end] for chunk in chunks_of(text, splitter))


def test_a_function_returns_spans_or_parts() -> None:
    text = "abc abc  def"
    assert chunks_of(text, lambda text: [(0, 3), [4, 7], (3, 4), (5, 5)]) == [Chunk("abc", 0, 3), Chunk("abc", 4, 7)]
    assert chunks_of(text, lambda text: ["abc", "abc  def"]) == [Chunk("abc", 0, 3), Chunk("abc  def", 4, 12)]
    found = chunks_of(text, lambda text: iter(["abc abc", "bc  d", "def"]))
    assert [(chunk.start, chunk.end) for chunk in found] == [(0, 7), (5, 10), (9, 12)]
    assert texts(text, lambda text: []) == []


def test_a_tokenizer_returns_spans_or_parts() -> None:
    text = " ".join(f"w-{n}" for n in range(50))
    by_parts = texts(text, by_tokens(6, 2, tokenizer=str.split))
    # Spans of no characters are what language models put around a text.
    spans = lambda text: [(0, 0), *(match.span() for match in re.finditer(r"\S+", text)), (0, 0)][:-1]  # noqa: E731
    assert by_parts == texts(text, by_tokens(6, 2, tokenizer=spans))
    assert max(len(part.split()) for part in by_parts) == 6
    for before, part in itertools.pairwise(one.split() for one in by_parts):
        repeated = min(2, len(before) - 1)
        assert before[-repeated:] == part[:repeated]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ("abc", "returns spans"),
        (None, "returns spans .* got NoneType"),
        (7, "got int"),
        ([(0, 99)], r"no part of a text of 7 characters: \(0, 99\)"),
        ([(3, 2)], "no part"),
        ([(-1, 2)], "no part"),
        ([(0.0, 2)], "no part"),
        ([(True, 2)], "no part"),
        ([(0, 1, 2)], "no part"),
        ([{"secret": 1}], "characters: dict$"),
        ([("secret", "text")], "characters: tuple$"),
        (["abcdefgh"], "a part of 8 characters that is not in the text after 0"),
        (["def", "abc"], "a part of 3 characters that is not in the text after 4"),
        ([b"abc"], "no part"),
    ],
)
def test_what_is_no_part_of_the_text_is_refused(found: Any, message: str) -> None:
    with pytest.raises(InvalidText, match=message):
        chunks_of("abc def", lambda text: found)


def test_tokens_that_overlap_are_refused() -> None:
    with pytest.raises(InvalidText, match="the tokenizer returned a part at 1 after one that ends at 3"):
        texts("abc def", by_tokens(2, 0, tokenizer=lambda text: [(0, 3), (1, 4)]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: by_tokens(0),
        lambda: by_tokens(-1),
        lambda: by_tokens(2.5),  # type: ignore[arg-type]
        lambda: by_tokens("3"),  # type: ignore[arg-type]
        lambda: by_tokens(True),
        lambda: by_tokens(20, 20),
        lambda: by_tokens(20, -1),
        lambda: by_tokens(20, 2, tokenizer="words"),  # type: ignore[arg-type]
        lambda: by_sentences(0),
        lambda: by_sentences(1),
        lambda: by_sentences(3, 3),
    ],
)
def test_options_out_of_their_range_are_refused(make: Any) -> None:
    with pytest.raises(InvalidOption):
        make()


CHUNKS = st.lists(st.sampled_from("abcde"), max_size=8)


@given(CHUNKS, CHUNKS)
def test_changes_make_stored_chunks_those_of_the_text_with_as_few_new_ones_as_there_can_be(
    old: list[str], new: list[str]
) -> None:
    stored = [StoredChunk(100 + n, n, n, n + 1, text) for n, text in enumerate(old)]
    chunks = [Chunk(text, n, n + 1) for n, text in enumerate(new)]
    found = changes((1,), stored, chunks)
    rows = {row.id: row for row in stored if row.id not in found.removed} | {row.id: row for _, row in found.moved}
    after = sorted(
        [(row.position, row.start, row.end, row.text) for row in rows.values()]
        + [(position, chunk.start, chunk.end, chunk.text) for _, position, chunk in found.added]
    )
    assert after == [(n, n, n + 1, text) for n, text in enumerate(new)]
    assert len(found.added) == sum(max(0, new.count(text) - old.count(text)) for text in set(new))
    assert len(found.removed) == sum(max(0, old.count(text) - new.count(text)) for text in set(old))
    if old == new:
        assert not found
