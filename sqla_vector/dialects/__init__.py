"""All that is specific to one database.  Importing it registers how our own elements compile, nothing else."""

from sqla_vector.dialects import postgresql, ranked, sqlite
from sqla_vector.dialects.settings import settings_of

__all__ = ["postgresql", "ranked", "settings_of", "sqlite"]
