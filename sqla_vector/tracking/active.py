"""Which of several versions of an embedder a column's vectors are by, for those who search."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from sqla_vector.embedding import Embedder
from sqla_vector.exc import InvalidOption
from sqla_vector.tracking.session import tracking_behind
from sqla_vector.tracking.targets import Embedders, GivenEmbedders, target_of, targets_of

__all__ = ["active_embedder"]


def active_embedder(session: Session, attribute: Any, *, embedders: GivenEmbedders | None = None) -> Embedder:
    """Return the embedder by which a column's vectors were made, for queries.

    With an ``AsyncSession``: ``await session.run_sync(active_embedder, Article.embedding)``.

    Args:
        session: any session; those that are tracked know the embedders.
        attribute: the embedded column, such as ``Article.embedding``.
        embedders: by name, if not those of :func:`track`.

    Raises:
        InvalidOption: an argument is none, or there are no embedders.
    """
    tracking = tracking_behind(session)
    if embedders is None and tracking is None:
        raise InvalidOption("active_embedder() has no embedders; give embedders=, or track() the sessions before")
    known = Embedders(embedders) if embedders is not None else tracking.embedders  # type: ignore[union-attr]
    _, column = target_of(attribute, targets_of() if tracking is None else tracking.targets)
    return known.at(lambda c: session.connection(bind_arguments={"mapper": c.mapper})).embedder(column)
