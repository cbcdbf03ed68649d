"""match_text(): the same rows on every backend, equal to a reference, and ranked alike where both databases must."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import ForeignKey, String, Text, bindparam, func, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, joinedload, mapped_column, relationship

from sqla_vector import (
    InvalidOption,
    InvalidStatement,
    InvalidText,
    Snippet,
    match_text,
    text_index,
)
from tests.support.backends import AnyEngine, Backend
from tests.support.text_queries import QUERIES, QUERIES_OF_WORDS, corpus
from tests.support.text_reference import Term, matches, words_of


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "author"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(20))
    articles: Mapped[list[Article]] = relationship(back_populates="author")
    __table_args__ = (text_index("ix_author_name", "name"),)


class Article(Base):
    __tablename__ = "article"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str | None] = mapped_column(String(400))
    body: Mapped[str | None] = mapped_column(Text)
    year: Mapped[int | None]
    author_id: Mapped[int | None] = mapped_column(ForeignKey("author.id"))
    author: Mapped[Author | None] = relationship(back_populates="articles")
    __table_args__ = (text_index("ix_article_text", "title", "body", weights=(1.0, 0.25)),)


class Plain(Base):
    __tablename__ = "plain"
    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str]
    notes: Mapped[str | None] = mapped_column(Text)
    size: Mapped[int]


class Tagged(Base):
    __tablename__ = "tagged"
    slug: Mapped[str] = mapped_column(String(30), primary_key=True)
    line: Mapped[str] = mapped_column("text_line", Text)
    __table_args__ = (
        text_index("ix_tagged_line", "text_line"),
        text_index("ix_tagged_english", "text_line", language="english"),
    )


class Person(Base):
    __tablename__ = "person"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(10))
    name: Mapped[str] = mapped_column(String(40))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}
    __table_args__ = (text_index("ix_person_name", "name"),)


class Writer(Person):
    __tablename__ = "writer"
    id: Mapped[int] = mapped_column(ForeignKey("person.id"), primary_key=True)
    about: Mapped[str] = mapped_column(Text)
    __mapper_args__ = {"polymorphic_identity": "writer"}
    __table_args__ = (text_index("ix_writer_about", "about"),)


class Editor(Person):
    __mapper_args__ = {"polymorphic_identity": "editor"}


CORPUS = corpus(60)


@pytest.fixture
def filled(backend: Backend, engine: AnyEngine) -> AnyEngine:
    backend.create_all(engine, Base.metadata)

    def fill(session: Session) -> None:
        session.add_all([Author(id=1, name="Ann"), Author(id=2, name="Bob")])
        session.flush()
        session.add_all(
            Article(id=key, title=title, body=body, year=2000 + key % 5, author_id=1 + key % 2)
            for key, (title, body) in CORPUS.items()
        )

    backend.run(engine, fill)
    return engine


def ids(session: Session, query: str, k: int = 1_000, **options: Any) -> list[int]:
    return list(session.scalars(match_text(select(Article.id), Article, query, k, **options)))


def test_the_rows_found_are_those_of_the_reference(backend, filled):
    def check_many(session: Session) -> None:
        @settings(max_examples=80, deadline=None)
        @given(QUERIES)
        def check(query):
            typed, alternatives = query
            expected = {key for key, texts in CORPUS.items() if matches(alternatives, *texts)}
            assert set(ids(session, typed)) == expected

        check()

    backend.run(filled, check_many)


@pytest.mark.backends("psycopg")
def test_a_query_means_what_postgresql_takes_it_to_mean(backend, filled):
    cleaned = func.regexp_replace(func.concat_ws(" ", Article.title, Article.body), r"[^\w]+", " ", "g")

    def check_many(session: Session) -> None:
        @settings(max_examples=60, deadline=None)
        @given(QUERIES_OF_WORDS)
        def check(query):
            typed, _ = query
            meant = func.websearch_to_tsquery(text("'simple'"), typed)
            theirs = select(Article.id).where(func.to_tsvector(text("'simple'"), cleaned).bool_op("@@")(meant))
            assert set(ids(session, typed)) == set(session.scalars(theirs))

        check()

    backend.run(filled, check_many)


def test_no_query_is_an_error(backend, filled):
    enemies = ["'", '"', "\\", "\0", "\\0", "';--", "a:*", "fo*", "^red", "title:red", "{title}:red", "NEAR(red fox)"]
    enemies += [
        "red AND",
        "NOT",
        "OR",
        "(((",
        ")))",
        "!!",
        "&|!",
        "<->",
        "red <-> fox",
        '"" ""',
        "-",
        "- - -",
        "%s %(a)s",
    ]
    enemies += [
        ":param",
        "?1",
        "$1",
        "red;DROP TABLE article",
        "x" * 100_000,
        "red " * 10_000,
        '"' * 9_999,
        "-" * 9_999,
    ]
    enemies += ["a or " * 3_000, "\N{RIGHT-TO-LEFT OVERRIDE}red", "e\u0301", "\u0301", "\U0010ffff", "\ufeff", "𝔯𝔢𝔡"]

    def search(session: Session) -> None:
        for query in enemies:
            ids(session, query)

        @settings(max_examples=60, deadline=None)
        @given(st.text() | st.text(alphabet="red fox\"-orOR|&!()'\\:*^~\n\t\0_.,<>%"))
        def check(query):
            ids(session, query)

        check()
        assert session.scalar(select(func.count()).select_from(Article)) == len(CORPUS)

    backend.run(filled, search)


def test_words_are_cut_alike_and_found_in_any_case(backend, engine):
    texts = {
        1: "user@example.org and http://example.org/a/b?c=d",
        2: "well-known -5 3.14 1e5 x_y 10% (paren)",
        3: "ÉTÉ naïve Straße ΣΟΦΙΑ Привет",
        4: "שָׁלוֹם עולם مرحبا",
        5: "नमस्ते दुनिया। 你好 こんにちは",
        6: "red😀fox “quoted” it’s l'été",
        7: "cafe\u0301 café",
    }
    backend.create_all(engine, Base.metadata)
    backend.run(engine, lambda s: s.add_all(Article(id=key, body=value) for key, value in texts.items()))
    wanted = {
        "example": [1],
        "ORG": [1],
        '"user example org and http example org a b c d"': [1],
        "user@example.org": [1],
        "known": [2],
        '"well known"': [2],
        "5": [2],
        "14": [2],
        "1E5": [2],
        "y": [2],
        "paren": [2],
        "été": [3, 6],
        "Été NAÏVE": [3],
        "straße": [3],
        "привет": [3],
        "שָׁלוֹם": [4],
        "عولم": [],
        "مرحبا": [4],
        "नमस्ते": [5],
        "दुनिया": [5],
        "你好": [5],
        "fox": [6],
        '"red fox"': [6],
        "quoted": [6],
        "it's": [6],
        "cafe\u0301": [7],
        "café": [7],
        "caf": [],
        "cafe": [],
    }

    def check(session: Session) -> None:
        assert {query: sorted(ids(session, query)) for query in wanted} == wanted

    backend.run(engine, check)


def test_a_phrase_does_not_go_from_one_column_to_the_next(backend, engine):
    backend.create_all(engine, Base.metadata)
    backend.run(engine, lambda s: s.add(Article(id=1, title="red", body="fox")))
    found = backend.run(engine, lambda s: [ids(s, query) for query in ('"red fox"', "red fox", "red -fox")])
    assert found == [[], [1], []]


def test_more_occurrences_in_texts_of_one_length_rank_higher(backend, engine):
    chance = random.Random(5)

    def sentence(times: int) -> str:
        words = ["fox"] * times + [f"w{chance.randrange(1_000)}" for _ in range(12 - times)]
        chance.shuffle(words)
        return " ".join(words)

    backend.create_all(engine, Base.metadata)
    times = {key: 1 + (key * 7) % 6 for key in range(1, 7)}
    rows = {**{key: sentence(n) for key, n in times.items()}, **{key: sentence(0) for key in range(100, 150)}}
    backend.run(engine, lambda s: s.add_all(Article(id=key, body=body) for key, body in rows.items()))
    expected = sorted(times, key=lambda key: -times[key])
    for query in ("fox", "fox or hen", "fox -hen"):
        assert backend.run(engine, lambda s, query=query: ids(s, query)) == expected


def test_a_word_in_the_title_counts_by_its_weight(backend, engine):
    def fill(session: Session) -> None:
        session.add_all(Article(id=key, title=f"a{key} b{key}", body=f"c{key} d{key}") for key in range(100, 150))
        session.add(Article(id=1, title="one two", body="fox four"))
        session.add(Article(id=2, title="fox two", body="three four"))

    backend.create_all(engine, Base.metadata)
    backend.run(engine, fill)
    stmt = match_text(select(Article.id), Article, "fox")
    rows = backend.run(engine, lambda s: s.execute(stmt).all())
    assert [row.id for row in rows] == [2, 1]
    assert rows[0].score > rows[1].score > 0


def test_scores_descend_and_ties_are_in_key_order(backend, filled):
    backend.run(filled, lambda s: s.add_all(Article(id=key, body="unheard of") for key in (999, 500, 700)))
    rows = backend.run(filled, lambda s: s.execute(match_text(select(Article.id), Article, "red or fox", 1_000)).all())
    assert [(-row.score, row.id) for row in rows] == sorted((-row.score, row.id) for row in rows)
    assert all(isinstance(row.score, float) and row.score > 0 for row in rows)
    tied = backend.run(filled, lambda s: s.execute(match_text(select(Article.id), Article, "unheard")).all())
    assert [row.id for row in tied] == [500, 700, 999]
    assert len({row.score for row in tied}) == 1


def reference(word: str, *, keep: Any = lambda key: True) -> set[int]:
    return {key for key, texts in CORPUS.items() if keep(key) and matches([[Term((word,))]], *texts)}


def test_the_statements_own_criteria_hold(backend, filled):
    def check(session: Session) -> None:
        year = {key for key in CORPUS if key % 5 == 3}
        before = match_text(select(Article.id).where(Article.year == 2003), Article, "red", 1_000)
        after = match_text(select(Article.id), Article, "red", 1_000).where(Article.year == 2003)
        expected = reference("red", keep=year.__contains__)
        assert expected
        assert set(session.scalars(before)) == set(session.scalars(after)) == expected
        joined = match_text(select(Article.id).join(Article.author).where(Author.name == "Bob"), Article, "red", 1_000)
        assert set(session.scalars(joined)) == reference("red", keep=lambda key: key % 2 == 1)
        later = match_text(select(Article), Article, "red", 1_000).join(Author).where(Author.name == "Ann")
        assert {row[0].id for row in session.execute(later)} == reference("red", keep=lambda key: key % 2 == 0)
        few = session.scalars(match_text(select(Article.id).where(Article.year == 2003), Article, "red", 2)).all()
        assert few == session.scalars(before).all()[:2]

    backend.run(filled, check)


def test_aliases_subqueries_ctes_and_offsets(backend, filled):
    def check(session: Session) -> None:
        all_of_them = ids(session, "red")
        other = aliased(Article)
        assert session.scalars(match_text(select(other.id), other, "red", 1_000)).all() == all_of_them
        # An entity beside its alias: only the alias is searched.
        pairs = match_text(select(Article.id, other.id).where(Article.id == other.id + 1), other, "red", 1_000)
        assert {row[1] for row in session.execute(pairs)} == {key for key in all_of_them if key + 1 in CORPUS}
        table = Article.__table__
        assert session.scalars(match_text(select(table.c.id), table, "red", 1_000)).all() == all_of_them
        renamed = table.alias("renamed")
        assert session.scalars(match_text(select(renamed.c.id), renamed, "red", 1_000)).all() == all_of_them
        paged = [session.scalars(match_text(select(Article.id), Article, "red", 3).offset(n)).all() for n in (0, 3, 6)]
        assert [key for page in paged for key in page] == all_of_them[:9]
        for source in (
            match_text(select(Article.id), Article, "red", 5).subquery(),
            match_text(select(Article.id), Article, "red", 5).cte("found"),
        ):
            ranked = select(source.c.id, func.row_number().over(order_by=[source.c.score.desc(), source.c.id]))
            assert [row[0] for row in session.execute(ranked.order_by(text("2")))] == all_of_them[:5]
            whole = select(Article).join(source, source.c.id == Article.id).order_by(source.c.score.desc(), Article.id)
            assert [article.id for article in session.scalars(whole)] == all_of_them[:5]
        both = match_text(select(Article.id), Article, "red", 5).subquery()
        fox = match_text(select(Article.id), Article, "fox", 5).subquery()
        common = session.scalars(select(both.c.id).join(fox, fox.c.id == both.c.id)).all()
        assert set(common) == set(all_of_them[:5]) & set(ids(session, "fox", 5))
        counted = select(func.count()).select_from(match_text(select(Article.id), Article, "red", 1_000).subquery())
        assert session.scalar(counted) == len(all_of_them)

    backend.run(filled, check)


def test_entities_come_with_what_the_statement_asks_for(backend, filled):
    stmt = match_text(select(Article), Article, "red", 4).options(joinedload(Article.author))
    rows = backend.run(filled, lambda s: s.execute(stmt).all())
    assert len(rows) == 4
    assert all(row.Article.author.name in ("Ann", "Bob") and row.score > 0 for row in rows)


def test_collections_are_loaded_with_the_rows_that_are_found(backend, filled):
    backend.run(filled, lambda s: s.add_all(Author(id=key, name="Ann Other") for key in range(10, 15)))

    def check(session: Session) -> None:
        stmt = match_text(select(Author), Author, "ann", 3).options(joinedload(Author.articles))
        rows = session.execute(stmt).unique().all()
        assert [row.Author.id for row in rows] == [1, 10, 11]
        assert len(rows[0].Author.articles) == len(CORPUS) // 2

    backend.run(filled, check)


def test_grouping_and_distinct(backend, filled):
    def check(session: Session) -> None:
        found = reference("red")
        matching = match_text(select(Article.id, Article.author_id), Article, "red", 1_000).subquery()
        per_author = select(matching.c.author_id, func.count()).group_by(matching.c.author_id)
        assert dict(session.execute(per_author).all()) == {
            number: len([key for key in found if 1 + key % 2 == number]) for number in (1, 2)
        }

    backend.run(filled, check)


def test_a_statement_is_built_once_and_run_with_many_queries(backend, filled):
    stmt = match_text(select(Article.id), Article, bindparam("query"), 1_000)

    def check(session: Session) -> None:
        for word in ("red", "fox", "nothing", "'\"", "red"):
            assert set(session.scalars(stmt, {"query": word})) == reference(word)
        with pytest.raises(InvalidText):
            session.scalars(stmt, {"query": 3})

    backend.run(filled, check)


def test_the_compiled_statement_does_not_depend_on_the_query(backend, filled):
    keys = {match_text(select(Article.id), Article, query)._generate_cache_key().key for query in ("a", '"b c" -d')}
    assert len(keys) == 1
    others = {
        match_text(select(Tagged.slug), Tagged, "a", index=name)._generate_cache_key().key
        for name in ("ix_tagged_line", "ix_tagged_english")
    }
    assert len(others) == 2


def test_rows_that_change_are_found_by_what_they_say_now(backend, filled):
    def check(session: Session) -> None:
        session.execute(update(Article).where(Article.id == 1).values(title="zebra", body=None))
        session.execute(update(Article).where(Article.id == 2).values(title=None, body=None))
        session.delete(session.get_one(Article, 3))
        session.flush()
        assert ids(session, "zebra") == [1]
        assert not {2, 3} & set(ids(session, "red or fox or hen or owl or élan or été or x1 or 42"))

    backend.run(filled, check)


def test_min_score_leaves_out_the_rest(backend, filled):
    def check(session: Session) -> None:
        rows = session.execute(match_text(select(Article.id), Article, "red", 1_000)).all()
        bound = rows[len(rows) // 2].score
        found = session.execute(match_text(select(Article.id), Article, "red", 1_000, min_score=bound)).all()
        assert found == [row for row in rows if row.score >= bound]
        assert 0 < len(found) < len(rows)

    backend.run(filled, check)


def test_a_snippet_marks_the_words(backend, engine):
    body = " ".join(f"w{number}" for number in range(200)) + " the red fox runs " + "and " * 200
    backend.create_all(engine, Base.metadata)
    backend.run(engine, lambda s: s.add(Article(id=1, title="On animals", body=body)))

    def found(session: Session, **options: Any) -> str:
        return session.execute(match_text(select(Article.id), Article, "Red fox", **options)).one().snippet

    def check(session: Session) -> None:
        whole = found(session, snippet=True)
        assert "<mark>red</mark>" in whole
        assert "<mark>fox</mark>" in whole
        assert len(whole.split()) < 60
        marked = found(session, snippet=Snippet(start="[%", stop="%]", words=5))
        assert "[%red%]" in marked
        assert len(marked.split()) < 12
        assert not hasattr(session.execute(match_text(select(Article.id), Article, "fox")).one(), "snippet")

    backend.run(engine, check)


def test_text_keys_and_renamed_columns(backend, engine):
    lines = {"a'b": "red fox", "ü": "red hen", "": "owl", "c": "fox fox"}
    backend.create_all(engine, Base.metadata)
    backend.run(engine, lambda s: s.add_all(Tagged(slug=slug, line=line) for slug, line in lines.items()))

    def check(session: Session) -> None:
        for word in ("red", "fox", "owl", "none"):
            stmt = match_text(select(Tagged), Tagged, word, index="ix_tagged_line", snippet=True)
            rows = session.execute(stmt).all()
            assert {row.Tagged.slug for row in rows} == {slug for slug, line in lines.items() if word in line.split()}
            assert all(f"<mark>{word}</mark>" in row.snippet for row in rows)

    backend.run(engine, check)


def test_mapped_inheritance(backend, engine):
    backend.create_all(engine, Base.metadata)

    def check(session: Session) -> None:
        session.add_all(
            [
                Person(id=1, name="red"),
                Writer(id=2, name="red hen", about="a fox"),
                Writer(id=3, name="owl", about="the red fox"),
                Editor(id=4, name="red owl"),
            ]
        )
        session.flush()

        def found(entity: Any, query: str, **options: Any) -> list[int]:
            rows = session.execute(match_text(select(entity), entity, query, **options))
            return sorted(row[0].id for row in rows)

        assert found(Person, "red") == [1, 2, 4]
        assert found(Editor, "red") == [4]
        assert found(Writer, "red", index="ix_person_name") == [2]
        assert found(Writer, "red", index="ix_writer_about") == [3]
        assert found(aliased(Writer), "fox", index="ix_writer_about") == [2, 3]
        with pytest.raises(InvalidOption, match="has the text indexes ix_person_name and ix_writer_about"):
            match_text(select(Writer), Writer, "red")

    backend.run(engine, check)


def test_rows_are_deleted_and_changed_by_what_is_found(backend, filled):
    def check(session: Session) -> None:
        found = reference("red")
        matching = match_text(select(Article.id), Article, "red", 1_000).with_only_columns(Article.id)
        session.execute(update(Article).where(Article.id.in_(matching.subquery().select())).values(year=1))
        assert set(session.scalars(select(Article.id).where(Article.year == 1))) == found

    backend.run(filled, check)


def test_english_finds_other_forms_of_a_word(backend, engine):
    lines = {"a": "The foxes were running", "b": "a fox runs", "c": "of the hen", "d": "running the hens"}
    backend.create_all(engine, Base.metadata)
    backend.run(engine, lambda s: s.add_all(Tagged(slug=slug, line=line) for slug, line in lines.items()))

    def found(session: Session, query: str) -> set[str]:
        return set(session.scalars(match_text(select(Tagged.slug), Tagged, query, index="ix_tagged_english")))

    def check(session: Session) -> None:
        assert found(session, "fox") == {"a", "b"}
        assert found(session, "the run") == {"a", "b", "d"}
        assert found(session, '"fox runs"') == {"b"}
        assert found(session, "-hen the running") == {"a", "b"}
        assert found(session, "the") == found(session, "the -fox") == set()
        assert found(session, "the or hen") == {"c", "d"}

    backend.run(engine, check)


def test_options_are_checked_before_anything_is_sent():
    stmt = select(Article.id)
    for k in (0, -1, 2.5, "3", True, 1_000_001):
        with pytest.raises(InvalidOption, match="k must be a whole number"):
            match_text(stmt, Article, "fox", k)
    for score in ("high", True, float("nan")):
        with pytest.raises(InvalidOption, match="min_score must be a number"):
            match_text(stmt, Article, "fox", min_score=score)
    for query in (None, 3, b"fox", ["fox"]):
        with pytest.raises(InvalidText, match="a search query is a string"):
            match_text(stmt, Article, query)
    with pytest.raises(InvalidText, match="half of a surrogate pair"):
        match_text(stmt, Article, "fox \udc00")
    for marker in ("", "'", '"', "\\", "\0", "x" * 33, 3):
        with pytest.raises(InvalidOption, match="snippet: start is 1 to 32 characters"):
            Snippet(start=marker)
    for words in (0, 65, 2.5, True):
        with pytest.raises(InvalidOption, match="snippet: words must be a whole number"):
            Snippet(words=words)


def test_an_entity_without_an_index_is_told_the_line_to_add():
    with pytest.raises(
        InvalidOption, match=r'plain has no text index; add text_index\("ix_plain_text", "label", "notes"\)'
    ):
        match_text(select(Plain.id), Plain, "fox")
    with pytest.raises(
        InvalidOption, match="tagged has the text indexes ix_tagged_english and ix_tagged_line; say which"
    ):
        match_text(select(Tagged.slug), Tagged, "fox")
    with pytest.raises(InvalidOption, match="article has no text index 'ix_other'; it has ix_article_text"):
        match_text(select(Article.id), Article, "fox", index="ix_other")
    for entity in ("article", Article.id, 3, None, select(Article).subquery()):
        with pytest.raises(
            InvalidOption, match="match_text\\(\\) searches a mapped class, an alias of one, or a Table"
        ):
            match_text(select(Article.id), entity, "fox")


def test_statements_that_cannot_be_extended_are_refused():
    with pytest.raises(InvalidStatement, match="extends a select"):
        match_text(Article, Article, "fox")
    for stmt in (select(Article.id).limit(3), select(Article.id).offset(3), select(Article.id).fetch(3)):
        with pytest.raises(InvalidStatement, match="has LIMIT or OFFSET already"):
            match_text(stmt, Article, "fox")
    with pytest.raises(InvalidStatement, match="has ORDER BY already"):
        match_text(select(Article.id).order_by(Article.id), Article, "fox")
    with pytest.raises(InvalidStatement, match="made by match_text"):
        match_text(match_text(select(Article.id), Article, "a").limit(None).order_by(None), Article, "b")


def test_a_statement_is_readable_without_an_engine():
    assert "text_match(article.title, article.body)" in str(match_text(select(Article.id), Article, "fox"))
    assert words_of("The ÉLAN’s x1") == ["the", "élan", "s", "x1"]
