"""Long texts in chunks: each paragraph or two has a vector, and an edit embeds only what is new.

    python examples/chunked_documents.py
    python examples/chunked_documents.py --url postgresql+psycopg://user:password@host/database

It needs ``pip install 'sqla-vector[sqlite,examples]'``.  The documents are docstrings of modules of the standard
library, and the embedder is scikit-learn's: nothing is downloaded, and no server is needed.  The tables that it makes
are dropped at the end.
"""

from __future__ import annotations

import argparse

from search_python_docs import read_docstrings
from sqlalchemy import create_engine, func, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from text_to_vector_sync import make_embedder

from sqla_vector import Vector, search
from sqla_vector.chunking import by_tokens, check_chunks, chunked
from sqla_vector.search import best_per_group
from sqla_vector.tracking import Event, TextsEmbedded, Worker, near_text, outbox_table, outbox_triggers, track

MODULES = ("argparse", "csv", "difflib", "fractions", "json", "logging", "random", "statistics", "string", "textwrap")


# --- 1. The table with the texts, and one call for the table of their chunks. --------------------------------------


class Base(DeclarativeBase):
    pass


class Manual(Base):
    """The docstrings of a module, one after the other."""

    __tablename__ = "chunked_manual"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    body: Mapped[str]


ManualChunk = chunked(
    Manual,
    "body",
    vector=Vector(64),
    embedder="lsa",
    splitter=by_tokens(size=120, overlap=20),
    parent="manual",
    index={"metric": "cosine", "method": "hnsw"},
)

# --- 2. For changes that no session sees: an outbox, with triggers that write into it. -----------------------------

outbox = outbox_table(Base.metadata, name="chunked_outbox")
outbox_triggers(Base, outbox)


# --- 3. The program: ordinary sessions, tracked. -------------------------------------------------------------------


def show(session: Session, question: str) -> None:
    """Print the three manuals that have the passages nearest to a question."""
    stmt = near_text(select(ManualChunk), ManualChunk.embedding, question, k=3, session=session)
    print(f"  {question!r}")
    for hit in search(session, best_per_group(stmt, ManualChunk.chunked_manual_id)):
        chunk = hit.entity
        passage = " ".join(chunk.text.split())[:60]
        print(f"    {hit.similarity:.2f}  {chunk.manual.name:<10}  {chunk.start:>6}-{chunk.end:<6}  {passage} ...")


def main() -> None:
    parser = argparse.ArgumentParser(description="Long texts in chunks.")
    parser.add_argument("--url", default="sqlite://", help="the database (default: SQLite in memory)")
    engine = create_engine(parser.parse_args().url, plugins=["sqla_vector"])

    docs = read_docstrings(MODULES)
    embedder = make_embedder([f"{name} {text}" for name, _, text in docs])
    bodies = {module: "\n\n".join(text for name, _, text in docs if name.split(".")[0] == module) for module in MODULES}
    embedded: list[int] = []

    def count(event: Event) -> None:
        if isinstance(event, TextsEmbedded):
            embedded.append(event.texts)

    def report(what: str) -> None:
        with sessions() as session:
            chunks = session.scalar(select(func.count()).select_from(ManualChunk))
        print(f"{what:<46}  {chunks} chunks, embedded: {sum(embedded)}")
        embedded.clear()

    sessions = sessionmaker(engine)
    track(sessions, embedders={"lsa": embedder}, outbox=outbox, models=Base, on_event=count)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    try:
        with sessions.begin() as session:
            session.add_all(Manual(name=name, body=body) for name, body in bodies.items())
        report(f"{len(bodies)} documents added")

        with sessions() as session:
            show(session, "add an optional argument to the command line")
            show(session, "median of the data")

        with sessions.begin() as session:
            manual = session.scalars(select(Manual).where(Manual.name == "argparse")).one()
            manual.body = "Read this first. Nothing else in here was changed.\n\n" + manual.body
        report("a paragraph put before the longest one")

        with sessions.begin() as session:
            session.execute(update(Manual).where(Manual.name == "random").values(body="Dice, and nothing else."))
        report("a statement that no session looks into")
        print(f"  {check_chunks(sessions)}")
        Worker(sessions, models=Base, on_event=count).run(until_empty=True)
        report("a worker has seen to it")

        with sessions.begin() as session:
            session.delete(session.scalars(select(Manual).where(Manual.name == "logging")).one())
        report("a document deleted")
        print(f"  {check_chunks(sessions)}")
    finally:
        Base.metadata.drop_all(engine)
        engine.dispose()


if __name__ == "__main__":
    main()
