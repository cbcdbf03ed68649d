"""What Alembic's own comparison leaves to this package, and the options that tell it so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Column, Index, Table

from sqla_vector.alembic.render import render_item as render_vector_item

__all__ = ["PLUGIN", "Comparison", "comparison_of", "options"]

PLUGIN: Final = "sqla_vector"
"""The name under which the comparators are registered."""

_OPTION: Final = "sqla_vector_comparison"


@dataclass
class Comparison:
    """What is known while an environment's models are compared with its database."""

    claimed: set[str] = field(default_factory=set)
    """The indexes of the table being compared that Alembic shall leave alone."""
    written: set[str] = field(default_factory=set)
    """The indexes of it, declared as pgvector-python does, whose operations are there already."""
    kept: set[str] = field(default_factory=set)
    """The columns of it that are kept after a change of dimension."""
    retyped: list[tuple[Column[Any], Column[Any]]] = field(default_factory=list)
    """The columns of it whose type differs: in the database, and in the model."""
    lacks_extension: bool | None = False
    """Whether the extension has to be created; None if only another database would need it."""
    has_vectors: bool = False
    """Whether a table in the database has a column that needs the extension."""
    hidden: list[tuple[Table, Index]] = field(default_factory=list)
    """The declared indexes that are taken out of their table while Alembic compares its other indexes."""
    reflected: dict[tuple[int, str | None], dict[str, list[Any]]] = field(default_factory=dict)
    """The vector indexes of each schema, by table; the number is the connection's identity."""

    reflected_texts: dict[tuple[int, str | None], dict[str, list[Any]]] = field(default_factory=dict)
    """Likewise the text indexes."""

    def hide(self, table: Table, index: Index) -> None:
        """Take an index out of its table: Alembic would compare its expression, and warn that it cannot."""
        table.indexes.remove(index)
        self.hidden.append((table, index))

    def show(self) -> None:
        """Put back what was taken out."""
        while self.hidden:
            table, index = self.hidden.pop()
            table.indexes.add(index)

    @contextmanager
    def showing_after_an_error(self) -> Iterator[None]:
        """Put back what was taken out if code of the project fails, which may be caught while the models live on."""
        try:
            yield
        except BaseException:
            self.show()
            raise


def comparison_of(opts: dict[str, Any]) -> Comparison:
    """Return the state that :func:`options` put into an environment's options."""
    found: Comparison = opts.setdefault(_OPTION, Comparison())
    return found


def options(
    *,
    include_name: Callable[..., bool] | None = None,
    include_object: Callable[..., bool] | None = None,
    render_item: Callable[..., Any] | None = None,
    autogenerate_plugins: Sequence[str] = ("alembic.autogenerate.*",),
    **others: Any,
) -> dict[str, Any]:
    """Return the arguments that ``context.configure()`` needs for vectors, with your own among them.

    ::

        context.configure(connection=connection, target_metadata=Base.metadata, **sqla_vector.alembic.options())

    Call it anew for each ``context.configure()``.

    Args:
        include_name: your own filter of names in the database, asked as well.
        include_object: your own filter of objects, asked as well.
        render_item: your own renderer, asked first.
        autogenerate_plugins: the comparators of your choice; this package's are added.
        **others: further arguments of ``context.configure()``, passed on.
    """
    comparison = Comparison()

    def include_named(name: str | None, type_: str, parent_names: Any) -> bool:
        if type_ == "index" and name in comparison.claimed:
            return False
        with comparison.showing_after_an_error():
            return include_name is None or include_name(name, type_, parent_names)

    def include(object_: Any, name: str | None, type_: str, reflected: bool, compare_to: Any) -> bool:
        if type_ == "column" and reflected and compare_to is None and name in comparison.kept:
            return False
        with comparison.showing_after_an_error():
            return include_object is None or include_object(object_, name, type_, reflected, compare_to)

    def render(type_: str, object_: Any, autogen_context: Any) -> Any:
        rendered = False if render_item is None else render_item(type_, object_, autogen_context)
        return render_vector_item(type_, object_, autogen_context) if rendered is False else rendered

    plugins = [*autogenerate_plugins, *([] if PLUGIN in autogenerate_plugins else [PLUGIN])]
    return {
        **others,
        "include_name": include_named,
        "include_object": include,
        "render_item": render,
        "autogenerate_plugins": plugins,
        _OPTION: comparison,
    }
