"""Relationships that are read while others write: all over one foreign key, or one association table."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Column, ForeignKey, Table
from sqlalchemy.orm import Mapped, Session, mapped_column, relationship

from tests.tracking.mapped import SYNC, WHEN, Make, base, edit, mark, settle, vector
from tests.tracking.models import CountingEmbedder
from tests.tracking.stale import joined


@SYNC
@WHEN
@pytest.mark.parametrize("linked", [True, False])
def test_several_relationships_over_one_foreign_key(tracked: Make, when: str, linked: bool):
    Base = base()

    class Comment(Base):
        __tablename__ = "comment"
        id: Mapped[int] = mapped_column(primary_key=True)
        word: Mapped[str]
        article_id: Mapped[int | None] = mapped_column(ForeignKey("article.id"))
        article: Mapped[Any | None] = relationship(
            "Article", back_populates="comments" if linked else None, overlaps="comments"
        )
        about: Mapped[Any | None] = relationship("Article", viewonly=True)
        embedding: Mapped[Any | None] = vector(("word", "about.name"), when)
        embedding_fingerprint: Mapped[str | None] = mark()

    def said(article: Any) -> str:
        return " ".join(sorted(comment.word for comment in article.seen))

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        comments: Mapped[list[Comment]] = relationship(back_populates="article" if linked else None)
        seen: Mapped[list[Comment]] = relationship(viewonly=True)
        embedding: Mapped[Any | None] = vector(said, when, depends_on=("seen.word",))
        embedding_fingerprint: Mapped[str | None] = mark()

    t = tracked(Base, CountingEmbedder())

    def all_are_current() -> None:
        assert settle(t, Article, said) == 2
        assert settle(t, Comment, lambda comment: joined(comment.word, comment.about and comment.about.name)) == 4

    def change(how: Any) -> None:
        def do(session: Session) -> None:
            how(*(session.get_one(Article, n) for n in (1, 2)), [session.get_one(Comment, n) for n in range(4)])

        t.run(do)
        all_are_current()

    comments = [Comment(id=n, word=word) for n, word in enumerate("wxyz")]
    t.run(lambda s: s.add_all([Article(id=1, name="a", comments=comments), Article(id=2, name="b")]))
    all_are_current()
    change(lambda one, two, c: setattr(c[0], "article", two))
    change(lambda one, two, c: two.comments.append(c[1]))
    change(lambda one, two, c: one.comments.remove(c[2]))
    change(lambda one, two, c: setattr(c[3], "article_id", 2))
    assert {"w x y z", "x y z", "w", "y z", "w x", "z", "w x z"} <= {*t.embedder.texts}


@SYNC
@WHEN
def test_several_relationships_over_one_association_table(tracked: Make, when: str):
    Base = base()
    tagged = Table(
        "tagged",
        Base.metadata,
        Column("article_id", ForeignKey("article.id"), primary_key=True),
        Column("tag_id", ForeignKey("tag.id"), primary_key=True),
    )

    class Tag(Base):
        __tablename__ = "tag"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        articles: Mapped[list[Any]] = relationship("Article", secondary=tagged, back_populates="tags")

    def said(article: Any) -> str:
        return f"{article.id} " + " ".join(sorted(tag.name for tag in article.public))

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        tags: Mapped[list[Tag]] = relationship(secondary=tagged, back_populates="articles")
        public: Mapped[list[Tag]] = relationship(
            secondary=tagged,
            viewonly=True,
            primaryjoin=lambda: Article.id == tagged.c.article_id,
            secondaryjoin=lambda: (Tag.id == tagged.c.tag_id) & (Tag.name != "secret"),
        )
        embedding: Mapped[Any | None] = vector(said, when, depends_on=("id", "public.name"))
        embedding_fingerprint: Mapped[str | None] = mark()

    t = tracked(Base, CountingEmbedder())

    def change(how: Any) -> None:
        def do(session: Session) -> None:
            how(*(session.get_one(Article, n) for n in (1, 2)), [session.get_one(Tag, n) for n in range(3)])

        t.run(do)
        assert settle(t, Article, said) == 2

    t.run(lambda s: s.add_all([Article(id=1), Article(id=2), *(Tag(id=n, name=name) for n, name in enumerate("xyz"))]))
    change(lambda one, two, tags: one.tags.extend(tags))
    change(lambda one, two, tags: tags[0].articles.append(two))
    change(lambda one, two, tags: one.tags.remove(tags[1]))
    change(lambda one, two, tags: tags[0].articles.remove(one))
    edit(t, Tag, 2, name="secret")
    assert settle(t, Article, said) == 2
    edit(t, Tag, 2, name="known")
    assert settle(t, Article, said) == 2
