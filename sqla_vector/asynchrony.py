"""The classes of asynchronous engines and sessions, or what stands for them where there can be none.

From 2.1 on SQLAlchemy has them only with greenlet installed, which a program without asynchronous sessions does not
need.  A stand-in is a class that nothing is of, so ``isinstance`` says no.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session, async_sessionmaker
else:
    try:
        from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session, async_sessionmaker
    except ImportError:

        class _Missing:
            """Nothing is of this class."""

            def __class_getitem__(cls, item: Any) -> type[_Missing]:
                return cls

        class AsyncEngine(_Missing):
            """Stands for SQLAlchemy's."""

        class AsyncSession(_Missing):
            """Stands for SQLAlchemy's."""

        class async_scoped_session(_Missing):  # noqa: N801
            """Stands for SQLAlchemy's."""

        class async_sessionmaker(_Missing):  # noqa: N801
            """Stands for SQLAlchemy's."""


__all__ = ["AsyncEngine", "AsyncSession", "async_scoped_session", "async_sessionmaker"]
