"""Which index serves a search, how well, and what to set."""

from sqla_vector.tuning.advice import Advice, aadvise, advise
from sqla_vector.tuning.explain import SearchPlan, aexplain_nearest, explain_nearest
from sqla_vector.tuning.optimize import aoptimize, optimize
from sqla_vector.tuning.plot import plot_recall
from sqla_vector.tuning.recall import Recall, ameasure_recall, measure_recall
from sqla_vector.tuning.stats import IndexStats, aindex_stats, index_stats
from sqla_vector.tuning.tune import Tuning, aforget, aload_tuned, atune, forget, load_tuned, tune

__all__ = [
    "Advice",
    "IndexStats",
    "Recall",
    "SearchPlan",
    "Tuning",
    "aadvise",
    "advise",
    "aexplain_nearest",
    "aforget",
    "aindex_stats",
    "aload_tuned",
    "ameasure_recall",
    "aoptimize",
    "atune",
    "explain_nearest",
    "forget",
    "index_stats",
    "load_tuned",
    "measure_recall",
    "optimize",
    "plot_recall",
    "tune",
]
