"""From a row to the text that is embedded."""

from __future__ import annotations

import string
import unicodedata
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqla_vector.embedding import SourceText
from sqla_vector.embedding.fingerprint import Model, digest, fingerprint
from sqla_vector.embedding.source import clean
from sqla_vector.exc import InvalidOption, InvalidText

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def row(**values: Any) -> Any:
    return SimpleNamespace(**values)


def text_of(source: Any, template: str | None = None, **values: Any) -> str | None:
    return SourceText.of(source, template=template)(row(**values))


def test_parts_are_joined_by_a_blank_line():
    assert text_of(("title", "body"), title="Cats", body="They purr.") == "Cats\n\nThey purr."
    assert text_of("title", title=" Cats ") == " Cats "
    assert text_of(["year", "title"], year=2024, title="Cats") == "2024\n\nCats"


@pytest.mark.parametrize("blank", [None, "", " ", "\n\t ", "\u2003\u3000"])
def test_a_part_without_text_is_left_out(blank: str | None):
    assert text_of(("title", "body"), title="Cats", body=blank) == "Cats"
    assert text_of(("title", "body"), title=blank, body="They purr.") == "They purr."
    assert text_of(("title", "body"), title=blank, body=None) is None
    assert text_of(("title", "body"), "{title}: {body}", title=blank, body=blank) is None
    assert text_of(("title", "body"), "{title}: {body}", title="Cats", body=blank) == "Cats: "


def test_numbers_and_zero_are_text():
    assert text_of(("stars", "sold"), stars=0, sold=False) == "0\n\nFalse"


def test_a_template_places_attributes():
    assert text_of(("title", "body"), "{title}\n\n{body} / {title}", title="A", body="B") == "A\n\nB / A"
    assert text_of(("title",), "{{{title}}} {{}}", title="A") == "{A} {}"
    assert text_of(("stars",), "{stars:05.2f}|{stars!r:>5}", stars=1.5) == "01.50|  1.5"
    assert text_of(("stars", "title"), "{title} {stars:.1f}", stars=None, title="A") == "A "
    assert text_of(("title",), "{title}", title="{body}") == "{body}"


def test_a_template_reaches_related_rows():
    source = SourceText.of(("author.name", "author_name"), template="{author.name} ({author_name})")
    assert source(row(author=row(name="Ada"), author_name="A. L.")) == "Ada (A. L.)"
    assert source(row(author=None, author_name="A. L.")) == " (A. L.)"
    assert source(row(author=None, author_name=None)) is None


@given(TEXT, TEXT, TEXT)
def test_a_template_keeps_every_text_as_it_is(title: str, body: str, literal: str):
    template = "{body}" + literal.replace("{", "{{").replace("}", "}}") + "{title}"
    made = text_of(("title", "body"), template, title=title, body=body)
    shown = [value if value.strip() else "" for value in (title, body)]
    assert made == (f"{shown[1]}{literal}{shown[0]}" if any(shown) else None)


@given(st.lists(st.none() | TEXT, min_size=1, max_size=5))
def test_joining_never_gives_a_text_without_a_visible_character(parts: list[str | None]):
    values = dict(zip(string.ascii_lowercase, parts, strict=False))
    made = text_of(tuple(values), **values)
    kept = [part for part in parts if part is not None and part.strip()]
    assert made == ("\n\n".join(kept) if kept else None)


TEMPLATES = {
    "a name that source lacks": "{title} {body}",
    "an attribute of an attribute": "{title.real}",
    "an element": "{title[0]}",
    "no name": "{}",
    "a number": "{0}",
    "open brace": "{title",
    "closing brace": "title}",
    "unknown conversion": "{title!z}",
    "conversion that changes the text": "{title!a}",
    "nested format": "{title:{title}}",
    "nothing": "",
    "no field": "constant",
}


@pytest.mark.parametrize("template", [*TEMPLATES.values(), 5, b"{title}"])
def test_a_template_that_cannot_work_is_refused_when_declared(template: Any):
    with pytest.raises(InvalidOption, match=r"template|source names title"):
        SourceText.of("title", template=template)


def test_a_format_that_does_not_fit_the_value_is_an_error_of_the_text():
    with pytest.raises(InvalidText, match="title cannot be written as the template"):
        text_of("title", "{title:.2f}", title="A")


@pytest.mark.parametrize(
    "source", [(), [], "", "a b", "a..b", ".a", "a.", "a'; --", "a\n", ("a", "a"), ("a", 5), 5, None, {"a"}, b"a"]
)
def test_what_names_no_attribute_is_refused(source: Any):
    with pytest.raises(InvalidOption, match=r"source (takes names|names no|names an attribute twice)"):
        SourceText.of(source)


def test_a_function_says_what_it_reads():
    source = SourceText.of(lambda entity: entity.title.upper(), depends_on="title")
    assert source.paths == ("title",)
    assert source(row(title="cats")) == "CATS"
    with pytest.raises(InvalidOption, match="add depends_on="):
        SourceText.of(lambda entity: entity.title)
    with pytest.raises(InvalidOption, match="a function makes the whole text"):
        SourceText.of(lambda entity: entity.title, depends_on="title", template="{title}")
    with pytest.raises(InvalidOption, match="belongs to a source that is a function"):
        SourceText.of("title", depends_on="title")


@pytest.mark.parametrize("given", [None, "", "  "])
def test_a_function_may_find_no_text(given: str | None):
    assert SourceText.of(lambda entity: given, depends_on="title")(row()) is None


@pytest.mark.parametrize("given", [5, b"cats", ["cats"], True])
def test_a_function_gives_a_string(given: Any):
    with pytest.raises(InvalidText, match="must be a string"):
        SourceText.of(lambda entity: given, depends_on="title")(row())


@pytest.mark.parametrize("value", [b"cats", bytearray(b"cats"), memoryview(b"cats")])
def test_bytes_are_no_text(value: Any):
    with pytest.raises(InvalidText, match="title holds bytes"):
        text_of("title", title=value)


def test_a_lone_surrogate_is_refused_with_its_place():
    with pytest.raises(InvalidText, match="lone surrogate at position 4"):
        text_of("title", title="cats\ud800")
    with pytest.raises(InvalidText):
        text_of("title", "{title}", title="\udfff")


@pytest.mark.parametrize("text", ["a\0b", "‏שלום עולם", "مرحبا", "e\u0301", "👩‍👩‍👧", "\u200b"])
def test_text_stays_as_it_is(text: str):
    assert clean(text) == text
    assert text_of("title", title=text) == text


def test_composed_and_decomposed_text_are_two_texts():
    composed, decomposed = (unicodedata.normalize(form, "naïve") for form in ("NFC", "NFD"))
    assert digest(composed) != digest(decomposed)


def test_ten_megabytes_are_a_text():
    text = "0123456789" * 1_000_000
    assert text_of(("title", "body"), title="A", body=text) == f"A\n\n{text}"
    assert len(digest(text)) == 32


def test_redact_sees_the_text_and_decides_what_is_known_of_it():
    source = SourceText.of(("title", "body"), redact=lambda text: text.replace("Ada", "***"))
    assert source(row(title="Ada", body="Countess")) == "***\n\nCountess"
    assert SourceText.of("title", redact=lambda text: None)(row(title="Ada")) is None
    assert SourceText.of("title", redact=lambda text: " ")(row(title="Ada")) is None
    seen: list[str] = []
    assert SourceText.of("title", redact=seen.append)(row(title=" ")) is None
    assert seen == []
    not_text: Any = lambda text: 5  # noqa: E731
    with pytest.raises(InvalidText):
        SourceText.of("title", redact=not_text)(row(title="Ada"))
    not_callable: Any = "title"
    with pytest.raises(InvalidOption, match="redact="):
        SourceText.of("title", redact=not_callable)


@given(TEXT, TEXT)
def test_fingerprints_are_equal_when_texts_are(one: str, other: str):
    model = Model("minilm", "1")
    assert (fingerprint(model, one) == fingerprint(model, other)) == (one == other)
    assert fingerprint(Model("minilm", "2"), one) != fingerprint(model, one)
