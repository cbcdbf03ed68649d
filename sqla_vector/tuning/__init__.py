"""Which index serves a search, how well, and what to set."""

from sqla_vector.tuning.explain import SearchPlan, aexplain_nearest, explain_nearest

__all__ = ["SearchPlan", "aexplain_nearest", "explain_nearest"]
