"""The tables of the programs: ours, pgvector.sqlalchemy's, and one without vectors, otherwise the same."""

from __future__ import annotations

from typing import Any

import numpy as np
from pgvector.sqlalchemy import VECTOR
from sqlalchemy import String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.harness import DIM
from sqla_vector import Vector


class Base(DeclarativeBase):
    """Of the three tables."""


class Ours(Base):
    """A vector column of sqla_vector."""

    __tablename__ = "bench_ours"

    id: Mapped[int] = mapped_column(primary_key=True)
    embedding: Mapped[np.ndarray] = mapped_column(Vector(DIM))


class Theirs(Base):
    """The same of pgvector.sqlalchemy."""

    __tablename__ = "bench_theirs"

    id: Mapped[int] = mapped_column(primary_key=True)
    embedding: Mapped[Any] = mapped_column(VECTOR(DIM))


class Plain(Base):
    """The same with a short text in the vector's place."""

    __tablename__ = "bench_plain"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(40))
