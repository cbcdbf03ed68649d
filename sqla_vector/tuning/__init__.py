"""Which index serves a search, how well, and what to set."""

from sqla_vector.tuning.explain import SearchPlan, aexplain_nearest, explain_nearest
from sqla_vector.tuning.recall import Recall, ameasure_recall, measure_recall
from sqla_vector.tuning.tune import Tuning, aforget, aload_tuned, atune, forget, load_tuned, tune

__all__ = [
    "Recall",
    "SearchPlan",
    "Tuning",
    "aexplain_nearest",
    "aforget",
    "aload_tuned",
    "ameasure_recall",
    "atune",
    "explain_nearest",
    "forget",
    "load_tuned",
    "measure_recall",
    "tune",
]
