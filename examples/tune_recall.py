"""How much of what it should find does a search find, and what is the cheapest way to find enough?

    python examples/tune_recall.py
    python examples/tune_recall.py --url postgresql+psycopg://user:password@host/database --plot recall.png

Makes 3,000 vectors around some centres, as embeddings of texts on some subjects are, and an index of one bit an
element.  Measures its recall, finds the settings that hold 0.95, and searches with them.  No server and nothing else
is needed; the tables that it makes are dropped at the end.
"""

from __future__ import annotations

import argparse

import numpy as np
from sqlalchemy import create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_vector import Vector, bulk, explain_nearest, nearest, vector_index
from sqla_vector.tuning import advise, index_stats, measure_recall, optimize, plot_recall, tune

ROWS, DIM = 3_000, 128


class Base(DeclarativeBase):
    pass


class Text(Base):
    """A text, of which only the vector matters here."""

    __tablename__ = "tune_text"

    id: Mapped[int] = mapped_column(primary_key=True)
    embedding: Mapped[np.ndarray] = mapped_column(Vector(DIM))
    __table_args__ = (vector_index("ix_tune_text", "embedding", metric="cosine", precision="binary"),)


def make_vectors(number: int, seed: int) -> np.ndarray:
    """Return vectors around fifty subjects."""
    subjects = np.random.default_rng(0).normal(size=(50, DIM))
    random = np.random.default_rng(seed)
    return subjects[random.integers(0, 50, number)] + random.normal(scale=0.8, size=(number, DIM))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="sqlite:///:memory:", help="a database; SQLite in memory by default")
    parser.add_argument("--plot", help="draw recall against latency into this .png or .html file")
    arguments = parser.parse_args()
    engine = create_engine(arguments.url, plugins=["sqla_vector"])
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    try:
        with engine.begin() as connection:
            bulk.load(connection, Text, {"id": np.arange(1, ROWS + 1), "embedding": make_vectors(ROWS, seed=1)})
        optimize(engine, Text.embedding)  # on PostgreSQL the planner wants statistics of the new rows

        # The questions that users ask are better than rows; here they are of the same kind as the rows.
        questions = make_vectors(120, seed=2)
        with Session(engine) as session:
            print("advice:", advise(session, Text.embedding, rows=1_000_000, memory=2 * 2**30).declaration)

            before = measure_recall(session, Text.embedding, queries=questions[:60], settings={"oversample": 4})
            print(f"recall with oversample=4: {before.recall:.3f}, served by {before.index}")

            found = tune(session, Text.embedding, target_recall=0.95, queries=questions)
            session.commit()  # what was found is kept with the index
            print(found.reason)

            (stats,) = index_stats(session, Text.embedding)
            print(f"{stats.name}: {stats.state}, {stats.rows:,} rows, tuned for {[e.recall for e in stats.tuned]}")

            stmt = nearest(select(Text.id), Text.embedding, make_vectors(1, seed=3)[0], k=10, recall=0.95)
            print(f"{len(session.execute(stmt).all())} rows; {explain_nearest(session, stmt).reason}")
        if arguments.plot:
            print("drawn:", plot_recall(found.measured, arguments.plot))
    finally:
        Base.metadata.drop_all(engine)
        engine.dispose()


if __name__ == "__main__":
    main()
