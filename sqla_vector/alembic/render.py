"""How types and operations are written into a migration."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from alembic.autogenerate import renderers
from alembic.autogenerate.render import _repr_type, _sqlalchemy_autogenerate_prefix
from sqlalchemy import Column, PrimaryKeyConstraint, TypeDecorator, UniqueConstraint

from sqla_vector.alembic import ops
from sqla_vector.alembic.definition import IndexDefinition
from sqla_vector.alembic.text_definition import TextIndexDefinition
from sqla_vector.dialects.capture import Capture, Mark
from sqla_vector.dialects.migration import BuildOptions
from sqla_vector.embedding import Fingerprint
from sqla_vector.types import VectorType

__all__ = ["render_item"]


def render_item(type_: str, object_: Any, autogen_context: Any) -> str | bool:
    """Render the types of this package, with their import; False leaves everything else to Alembic."""
    if type_ == "type" and type(object_) is Fingerprint:
        autogen_context.imports.add("import sqla_vector.embedding")
        return "sqla_vector.embedding.Fingerprint()"
    if type_ != "type" or not _is_vector(object_):
        return False
    module = type(object_).__module__
    if module == VectorType.__module__:
        autogen_context.imports.add("import sqla_vector")
        variants = (
            f".with_variant({_repr_type(variant, autogen_context)}, {dialect!r})"
            for dialect, variant in sorted(object_._variant_mapping.items())
        )
        return f"sqla_vector.{object_!r}{''.join(variants)}"
    # Somebody's own type, which Alembic names by its module unless it was told how.
    if autogen_context.opts.get("user_module_prefix") is None and module != "__main__":
        autogen_context.imports.add(f"import {module}")
    return False


def _is_vector(type_: Any) -> bool:
    """Tell whether a type is a vector, or somebody's decorator of one."""
    while isinstance(type_, TypeDecorator) and not isinstance(type_, VectorType):
        type_ = type_.impl_instance
    return isinstance(type_, VectorType)


def _call(context: Any, directive: str, positional: Iterable[object], named: dict[str, str]) -> str:
    """Return a call of one of our directives, whose import goes with it."""
    context.imports.add("import sqla_vector.alembic")
    given = ", ".join(repr(str(argument)) for argument in positional)
    arguments = [*([given] if given else []), *(f"{name}={value}" for name, value in named.items())]
    prefix = _directive_prefix(context)
    short = f"{prefix}{directive}({', '.join(arguments)})"
    if len(short) <= 100 and "\n" not in short:
        return short
    lines = "".join(f"    {argument},\n" for argument in arguments)
    return f"{prefix}{directive}(\n{lines})"


def _directive_prefix(context: Any) -> str:
    # Not batch_op: these are no operations of a batch.
    return str(context.opts.get("alembic_module_prefix") or "op.")


def _optional(**values: object) -> dict[str, str]:
    return {name: repr(value) for name, value in values.items() if value}


def _options(definition: IndexDefinition) -> dict[str, str]:
    return {
        name: repr(list(value) if isinstance(value, tuple) else value) for name, value in definition.written().items()
    }


def _build(build: BuildOptions) -> dict[str, str]:
    rendered = _optional(
        concurrently=build.concurrently,
        if_not_exists=build.if_not_exists,
        maintenance_work_mem=build.maintenance_work_mem,
    )
    if build.parallel_workers is not None:
        rendered["parallel_workers"] = repr(build.parallel_workers)
    return rendered


def _elements(definition: IndexDefinition | TextIndexDefinition, context: Any) -> dict[str, str]:
    if not definition.elements:
        return {}
    sa = _sqlalchemy_autogenerate_prefix(context)
    lines = "".join(f"        {_element(element, sa, context)},\n" for element in definition.elements)
    return {"table_elements": f"[\n{lines}    ]"}


def _element(element: Any, sa: str, context: Any) -> str:
    if isinstance(element, Column):
        required = "" if element.nullable else ", nullable=False"
        return f"{sa}Column({str(element.name)!r}, {_repr_type(element.type, context)}{required})"
    assert isinstance(element, (PrimaryKeyConstraint, UniqueConstraint))
    names = ", ".join(repr(str(argument)) for argument in element._pending_colargs)
    return f"{sa}{type(element).__name__}({names})"


@renderers.dispatch_for(ops.CreateVectorExtensionOp)
def _create_extension(context: Any, op: ops.CreateVectorExtensionOp) -> str:
    named = _optional(schema=op.schema, minimum_version=op.minimum_version)
    return _call(context, "create_vector_extension", (), named)


@renderers.dispatch_for(ops.DropVectorExtensionOp)
def _drop_extension(context: Any, op: ops.DropVectorExtensionOp) -> str:
    return _call(context, "drop_vector_extension", (), _optional(schema=op.schema))


@renderers.dispatch_for(ops.CreateVectorIndexOp)
def _create_index(context: Any, op: ops.CreateVectorIndexOp) -> str:
    definition = op.definition
    return _call(
        context,
        "create_vector_index",
        (definition.name, definition.table_name, definition.column_name),
        {
            **_options(definition),
            **_optional(schema=definition.schema),
            **_build(op.build),
            **_elements(definition, context),
        },
    )


@renderers.dispatch_for(ops.DropVectorIndexOp)
def _drop_index(context: Any, op: ops.DropVectorIndexOp) -> str:
    named = _optional(schema=op.schema, if_exists=op.if_exists, concurrently=op.concurrently)
    return _call(context, "drop_vector_index", (op.index_name, op.table_name), named)


@renderers.dispatch_for(ops.RebuildVectorIndexOp)
def _rebuild_index(context: Any, op: ops.RebuildVectorIndexOp) -> str:
    definition = op.definition
    named = {
        **_options(definition),
        **_optional(schema=definition.schema),
        **_build(op.build),
        **_elements(definition, context),
    }
    if op.existing is not None:
        named["existing"] = _dict(_options(op.existing))
    positional = (definition.name, definition.table_name, definition.column_name)
    return _call(context, "rebuild_vector_index", positional, named)


def _text_options(definition: TextIndexDefinition) -> dict[str, str]:
    return {name: repr(value) for name, value in definition.written().items()}


def _text_index(context: Any, op: ops.CreateTextIndexOp | ops.RebuildTextIndexOp) -> dict[str, str]:
    """Return the arguments after the names of the index and its table."""
    definition = op.definition
    return {
        "columns": repr(list(definition.columns)),
        **_text_options(definition),
        **_optional(schema=definition.schema),
        **_build(op.build),
        **_elements(definition, context),
    }


@renderers.dispatch_for(ops.CreateTextIndexOp)
def _create_text_index(context: Any, op: ops.CreateTextIndexOp) -> str:
    positional = (op.definition.name, op.definition.table_name)
    return _call(context, "create_text_index", positional, _text_index(context, op))


@renderers.dispatch_for(ops.DropTextIndexOp)
def _drop_text_index(context: Any, op: ops.DropTextIndexOp) -> str:
    named = _optional(schema=op.schema, if_exists=op.if_exists, concurrently=op.concurrently)
    return _call(context, "drop_text_index", (op.index_name, op.table_name), named)


@renderers.dispatch_for(ops.RebuildTextIndexOp)
def _rebuild_text_index(context: Any, op: ops.RebuildTextIndexOp) -> str:
    named = _text_index(context, op)
    if op.existing is not None:
        named["existing"] = _dict({"columns": repr(list(op.existing.columns)), **_text_options(op.existing)})
    return _call(context, "rebuild_text_index", (op.definition.name, op.definition.table_name), named)


def _dict(rendered: dict[str, str]) -> str:
    return "{" + ", ".join(f"{name!r}: {value}" for name, value in rendered.items()) + "}"


@renderers.dispatch_for(ops.CreateOutboxTriggerOp)
def _create_outbox_trigger(context: Any, op: ops.CreateOutboxTriggerOp) -> str:
    named = _capture(op.definition)
    if op.existing is not None:
        named["existing"] = _dict({"table_name": repr(op.existing.table), **_capture(op.existing, "        ")})
    return _call(context, "create_outbox_trigger", (op.definition.table,), named)


@renderers.dispatch_for(ops.DropOutboxTriggerOp)
def _drop_outbox_trigger(context: Any, op: ops.DropOutboxTriggerOp) -> str:
    named = _optional(schema=op.schema, name=None if op.has_usual_name else op.name)
    if op.channel != "embedding":
        named["channel"] = repr(op.channel)
    return _call(context, "drop_outbox_trigger", (op.table_name,), named)


def _capture(definition: Capture, indent: str = "    ") -> dict[str, str]:
    """Return the arguments of a definition but for its table."""
    marks = "".join(f"{indent}    {_mark(mark)},\n" for mark in definition.marks)
    return {
        **_optional(schema=definition.schema),
        "outbox": repr(definition.outbox),
        **_optional(outbox_schema=definition.outbox_schema),
        **({"channel": repr(definition.channel)} if definition.channel != "embedding" else {}),
        "marks": f"[\n{marks}{indent}]",
        **_optional(unique=[list(names) for names in definition.unique], deletes=definition.deletes),
    }


def _mark(mark: Mark) -> str:
    named = {"entity": repr(mark.entity), "key": repr(dict(mark.key)), "watched": repr(list(mark.watched))}
    if mark.path:
        steps = [
            _dict({"table": repr(join.table), **_optional(schema=join.schema), "on": repr(list(join.on))})
            for join in mark.path
        ]
        named["path"] = f"[{', '.join(steps)}]"
    return _dict({**named, **_optional(fingerprint=mark.fingerprint), **({} if mark.inserts else {"inserts": "False"})})


@renderers.dispatch_for(ops.ConvertVectorColumnOp)
def _convert_column(context: Any, op: ops.ConvertVectorColumnOp) -> str:
    return _call(context, "convert_vector_column", (op.table_name, op.column_name), _types(context, op))


def _types(context: Any, op: Any) -> dict[str, str]:
    return {
        "type_": _repr_type(op.type_, context),
        "existing_type": _repr_type(op.existing_type, context),
        **_optional(schema=op.schema),
    }


def _replacing(context: Any, op: Any) -> dict[str, str]:
    named = _types(context, op)
    for name, definitions in (("existing_indexes", op.existing_indexes), ("indexes", op.indexes)):
        if definitions:
            rendered = [_dict({"index_name": repr(d.name), **_options(d)}) for d in definitions]
            named[name] = f"[{', '.join(rendered)}]"
    return named


@renderers.dispatch_for(ops.ChangeVectorColumnOp)
def _change_column(context: Any, op: ops.ChangeVectorColumnOp) -> list[str]:
    named = _replacing(context, op)
    by_name = op.backfill is not None and op.backfill != "later"
    named["backfill"] = getattr(op.backfill, "__name__", "...") if by_name else repr(op.backfill)
    named.update(_optional(source=op.source))
    return [
        f"# The vectors of {op.table_name}.{op.column_name} do not convert to the new type. If there are any, give",
        "# backfill a function that is passed rows (a list of mappings) and returns their new vectors; with",
        '# backfill="later" the column starts out empty. The old vectors are kept in a column beside it, until',
        f"# op.drop_kept_vector_column({op.table_name!r}, {op.column_name!r}).",
        _call(context, "change_vector_column", (op.table_name, op.column_name), named),
    ]


@renderers.dispatch_for(ops.RestoreVectorColumnOp)
def _restore_column(context: Any, op: ops.RestoreVectorColumnOp) -> str:
    return _call(context, "restore_vector_column", (op.table_name, op.column_name), _replacing(context, op))


@renderers.dispatch_for(ops.DropKeptVectorColumnOp)
def _drop_kept(context: Any, op: ops.DropKeptVectorColumnOp) -> str:
    positional = (op.table_name, op.column_name)
    return _call(context, "drop_kept_vector_column", positional, _optional(schema=op.schema))
