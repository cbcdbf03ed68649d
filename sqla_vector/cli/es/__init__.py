"""``sqla-vector es``: the indexes that Elasticsearch has of an application's rows."""

from sqla_vector.cli.es.group import register

__all__ = ["register"]
