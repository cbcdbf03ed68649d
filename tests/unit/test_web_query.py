"""The web-style query syntax: no text is an error, and each means what it means to PostgreSQL."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sqla_vector import InvalidText
from sqla_vector.web_query import (
    ENGLISH_STOP_WORDS,
    MAX_QUERY_CHARACTERS,
    MAX_QUERY_WORDS,
    Alternative,
    WebQuery,
    parse,
    words,
)
from tests.support.text_queries import QUERIES

# As strings: alternatives are parted by "|", terms by ",", a minus marks the unwanted.
MEANINGS = [
    ("", ""),
    ("fox", "fox"),
    ("red fox", "red,fox"),
    ('"red fox"', "red fox"),
    ('"red fox', "red fox"),
    ('fox "', "fox"),
    ('""', ""),
    ("red or fox", "red|fox"),
    ("red OR fox Or owl", "red|fox|owl"),
    ("a b or c d", "a,b|c,d"),
    ("fox -red", "fox,-red"),
    ("fox - red", "fox,-red"),
    ("--fox", "fox"),
    ('fox -"red hen"', "fox,-red hen"),
    ("-red", ""),
    ("-red or fox", "fox"),
    ("fox -", "fox"),
    ('fox -""', "fox"),
    ("or fox", "or,fox"),
    ("fox or", "fox,or"),
    ("fox or -", "fox,or"),
    ("a or or b", "a|or,b"),
    ("or", "or"),
    ('"or"', "or"),
    ("fox -or red", "fox,red,-or"),
    ("a -b or c", "a,-b|c"),
    ("fox-hunting", "fox hunting"),
    ("it's", "it s"),
    ("x@example.org", "x example org"),
    ("or-fox x", "or fox,x"),
    ("x or-fox", "x,or fox"),
    ("x or, y", "x|y"),
    ('x or"y z"', "x|y z"),
    ("x ,or y", "x|y"),
    ("red|fox & (owl) !cat", "red,fox,owl,cat"),
    ("+fox", "fox"),
    ('fox"red hen"owl', "fox,red hen,owl"),
    ("\0fox\0", "fox"),
    ("'; DROP TABLE article; --", "DROP,TABLE,article"),
    ("col:val NEAR(a b) a* ^b {c d}:e", "col val,NEAR,a,b,a,b,c,d e"),
    ("ÉLAN naïve", "ÉLAN,naïve"),
    ("שָׁלוֹם", "שָׁלוֹם"),
    ("नमस्ते।", "नमस्ते"),
    ("1.5e3 007", "1 5e3,007"),
    ("😀 !!!", ""),
]


def written(query: WebQuery) -> str:
    return "|".join(
        ",".join([*(" ".join(p) for p in one.wanted), *(f"-{' '.join(p)}" for p in one.unwanted)])
        for one in query.alternatives
    )


@pytest.mark.parametrize(("text", "meaning"), MEANINGS, ids=[repr(text) for text, _ in MEANINGS])
def test_a_query_means(text, meaning):
    found = written(parse(text))
    # A phrase that is wanted twice is wanted.
    assert found == "|".join(",".join(dict.fromkeys(part.split(","))) for part in meaning.split("|"))


@given(st.text() | st.text(alphabet="aB é\"-orOR|&!()'\\:*^~\n\t\0_.,"))
@example('"' * 1001)
@example("-" * 1001 + "a")
@example("or " * 500)
def test_no_text_is_an_error(text):
    query = parse(text)
    for one in query.alternatives:
        assert one.wanted
        for phrase in (*one.wanted, *one.unwanted):
            assert phrase
            assert all(unicodedata.category(character)[0] in "LNM" for word in phrase for character in word)
            assert all(phrase)


@given(QUERIES)
def test_a_query_is_parsed_into_what_was_meant(query):
    def phrases(terms, negated):
        return tuple(dict.fromkeys(term.words for term in terms if term.negated is negated))

    text, alternatives = query
    expected = [
        Alternative(phrases(terms, False), phrases(terms, True)) for terms in alternatives if phrases(terms, False)
    ]
    assert parse(text) == WebQuery(tuple(expected))


@given(st.text())
def test_words_are_letters_digits_and_marks(text):
    found = words(text)
    assert "".join(found) == "".join(c for c in text if unicodedata.category(c)[0] in "LNM")
    assert all(found)


@pytest.mark.parametrize("query", [None, 3, b"fox", ["fox"]])
def test_a_query_is_a_string(query):
    with pytest.raises(InvalidText, match="a search query is a string, got "):
        parse(query)


def test_a_lone_surrogate_is_refused_by_its_position():
    with pytest.raises(InvalidText, match="half of a surrogate pair at position 3"):
        parse("fox\ud83d")


def test_a_query_without_end_is_cut():
    assert parse("a " * 1_000) == WebQuery((Alternative((("a",),)),))
    many = parse(" ".join(f"w{number}" for number in range(1_000)))
    assert many.wanted == tuple((f"w{number}",) for number in range(MAX_QUERY_WORDS))
    assert parse('"' + " ".join(f"w{number}" for number in range(1_000))).wanted[0][-1] == f"w{MAX_QUERY_WORDS - 1}"
    assert parse(" " * MAX_QUERY_CHARACTERS + "fox").wanted == ()


def test_a_word_that_no_index_has_is_found_nowhere():
    long = "x" * 501
    assert parse(f"{long} fox").alternatives == ()
    assert parse(f"{long} fox or owl").wanted == (("owl",),)
    assert parse(f"fox -{long}") == WebQuery((Alternative((("fox",),)),))
    assert parse("x" * 500).wanted == (("x" * 500,),)


def test_stop_words_go_at_the_ends_of_phrases():
    query = parse('The "of the red in a fox the" or "to be" or owl -"the and" -the')
    assert written(query.without(ENGLISH_STOP_WORDS)) == "red in a fox|owl"
