"""What is searched for, and the parts of requests that are made of it: values in, JSON out, no I/O."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from sqla_vector.coercion import as_float
from sqla_vector.elasticsearch.dsl import MATCH_NONE, Query
from sqla_vector.elasticsearch.specs import DenseVectorSpec
from sqla_vector.exc import InvalidOption, InvalidText, shown
from sqla_vector.fusion import check_weight
from sqla_vector.metrics import METRICS, Metric
from sqla_vector.schema import check_whole_number

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sqla_vector.elasticsearch.index import SearchIndex

__all__ = ["MAX_HITS", "Knn", "KnnQuery", "Match", "TextQuery", "knn_query", "text_query"]

MAX_HITS: Final = 10_000
"""The server's limit of num_candidates, and of one page (index.max_result_window)."""
MAX_TEXT: Final = 10_000
"""Characters: each word becomes a clause, and a node refuses too many."""

LEAST_CANDIDATES: Final = 100
CANDIDATES_PER_HIT: Final = 10
MARGIN: Final = 10
"""How many rows beyond k an exact search is asked for: scores are float32, and the order of near ones is by chance."""

_SLACK: Final = 1e-5
_OVERSAMPLES: Final = (("int8", 2.0), ("int4", 3.0), ("bbq", 5.0))
_FULL_PRECISION: Final = frozenset({"hnsw", "flat"})
_FIELD: Final = re.compile(r"([^\^]+)(?:\^(\d{1,6}(?:\.\d{1,6})?))?\Z")
_POWERS: Final = 10.0 ** np.arange(23)
"""Those of ten that are exact, so that a quotient is the number nearest to the decimal."""
_SHOULD_MATCH: Final = re.compile(r"-?\d{1,3}%?\Z")


_DISTANCES: Final[Mapping[str, Callable[[float, int], float]]] = {
    "cosine": lambda score, dim: 2.0 - 2.0 * score,
    "l2": lambda score, dim: math.sqrt(max(1.0 / score - 1.0, 0.0)),
    "inner_product": lambda score, dim: 1.0 - score if score >= 1.0 else 1.0 / score - 1.0,
    "hamming": lambda score, dim: (1.0 - score) * dim,
}


@dataclass(frozen=True, slots=True)
class Knn:
    """A search for the nearest vectors.

    Args:
        field: a field declared by :class:`DenseVector`.
        vector: the query, of shape (dim,).
        num_candidates: how many candidates each shard looks at, up to 10,000; by default ten for each row wanted, and
            at least 100.
        oversample: how many times ``k`` candidates of a quantized index are scored again with the full vectors, 1 to
            less than 10, or 0 for none; by default 2, for int4 3 and for bbq 5, or what the field declares.
        exact: look at every vector: by the field itself if it is declared with ``index="flat"``, or else by a flat
            field of the same attribute and metric.
        max_distance: leave out rows farther than this.
        min_similarity: leave out rows less similar than this; instead of ``max_distance``.
        weight: how much the list counts where several are fused.
    """

    field: str
    vector: Any
    _: KW_ONLY
    num_candidates: int | None = None
    oversample: float | None = None
    exact: bool = False
    max_distance: float | None = None
    min_similarity: float | None = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Match:
    """A search for words.

    The text is words and nothing else: no operators, no wildcards, nothing that could be wrong.

    Args:
        text: what somebody typed; without a word in it, it finds nothing.
        fields: names of text and keyword fields, ``"title^2"`` to count twice; by default all text fields.
        operator: whether one of the words is enough, or all have to be there.
        type: how several fields count together: the best one, all of them, or as if they were one field.
        fuzziness: how many letters of a word may differ; ``"AUTO"`` lets the length of the word decide.
        minimum_should_match: how many of the words have to be there: ``2``, ``"75%"``.
    """

    text: str
    fields: Sequence[str] = ()
    _: KW_ONLY
    operator: Literal["or", "and"] = "or"
    type: Literal["best_fields", "most_fields", "cross_fields"] = "best_fields"
    fuzziness: int | Literal["AUTO"] | None = None
    minimum_should_match: int | str | None = None


@dataclass(frozen=True, slots=True)
class KnnQuery:
    """A :class:`Knn` that was checked."""

    spec: DenseVectorSpec
    """The field that is searched."""
    vector: Any
    """The query as JSON; None if no vector has a distance to it."""
    given: Any
    """The query as the column's type has it."""
    is_own: bool
    """Whether the vector is one of the row itself, so that the database can say the distance."""
    num_candidates: int | None
    oversample: float | None
    max_distance: float | None
    weight: float

    @property
    def metric(self) -> Metric:
        """The field's metric."""
        return METRICS[self.spec.metric]

    @property
    def is_exact(self) -> bool:
        """Whether every vector is looked at, as it is."""
        return self.spec.index == "flat"

    def body(self, size: int, filter_: Query | None, k: int) -> dict[str, Any]:
        """Return the part of a request that finds the nearest.

        Args:
            size: how many.
            filter_: for which documents.
            k: how many of them are wanted in the end; of what is only there to be fused, a few may be missed.
        """
        if self.vector is None:
            return {"query": MATCH_NONE}
        wanted = self.num_candidates
        if wanted is None:
            wanted = max(LEAST_CANDIDATES, CANDIDATES_PER_HIT * k, size + size // 2)
        knn: dict[str, Any] = {
            "field": self.spec.name,
            "query_vector": self.vector,
            "k": size,
            "num_candidates": min(max(wanted, size), MAX_HITS),
        }
        if self.oversample is not None:
            knn["rescore_vector"] = {"oversample": self.oversample}
        if filter_ is not None:
            knn["filter"] = filter_
        if (bound := self._bound()) is not None:
            knn["similarity"] = bound
        return {"knn": knn}

    def distance(self, score: float) -> float:
        """Return the distance that a score stands for, in float32's precision.

        Source: Elasticsearch's manual on ``dense_vector``, how ``_score`` follows from each similarity.
        """
        return _DISTANCES[self.spec.metric](score, self.spec.dim)

    def similarity(self, distance: float) -> float:
        """Return the similarity of a distance."""
        return self.metric.similarity(distance, self.spec.dim)

    def is_near(self, distance: float | None) -> bool:
        """Tell whether a row is within the bound, if there is one."""
        return self.max_distance is None or (distance is not None and distance <= self.max_distance)

    def _bound(self) -> float | None:
        """Return the bound as the server has it, a little wide: what is beyond is left out by the distance.

        The scores of quantized vectors are near the true ones only, and could be on the other side of any bound.
        """
        if self.max_distance is None or self.spec.index not in _FULL_PRECISION or math.isinf(self.max_distance):
            return None
        bound = self.max_distance
        wide = bound + _SLACK * (1.0 + abs(bound))
        match self.spec.metric:
            case "cosine":
                return max(1.0 - wide, -1.0)
            case "inner_product":
                return -wide
            case _:
                return max(wide, 0.0)


@dataclass(frozen=True, slots=True)
class TextQuery:
    """A :class:`Match` that was checked."""

    query: Query
    fields: tuple[str, ...]
    """What is highlighted."""


def knn_query(index: SearchIndex, knn: object) -> KnnQuery:
    """Return a checked :class:`Knn`.

    Raises:
        InvalidOption: no such field, or an option out of its range.
        InvalidVector: the query is no vector of the field's dimension.
    """
    if not isinstance(knn, Knn):
        raise InvalidOption(f"knn= is Knn(field, vector), or several of them; got {type(knn).__name__}")
    if not isinstance(knn.exact, bool):
        raise InvalidOption(f"exact must be True or False, got {knn.exact!r}")
    spec = _exact_field(index, knn) if knn.exact else _vector_field(index, knn.field)
    if knn.num_candidates is not None:
        check_whole_number(knn.num_candidates, "num_candidates", 1, MAX_HITS)
    weight = check_weight(knn.weight)
    type_: Any = spec.attribute.property.columns[0].type
    _check_oversample(knn.oversample, spec)
    if knn.vector is None:
        raise InvalidOption(f"Knn({knn.field!r}) needs a vector, got None")
    given = type_.codec.coerce(knn.vector, f"the query for {spec.name}")
    sent = spec.to_json(given)
    vector = nine_digits(sent) if isinstance(sent, np.ndarray) else sent
    is_own = spec.name in index.fields and not spec.relations
    bound = _max_distance(knn, spec)
    return KnnQuery(spec, vector, given, is_own, knn.num_candidates, _oversample(knn.oversample, spec), bound, weight)


def nine_digits(vector: NDArray[np.float32]) -> list[float]:
    """Return the elements as numbers that JSON writes with nine digits at most.

    Nine are exact for float32 (IEEE 754-2019, section 5.12.2).  As they are they would take 17, and twice the time.
    """
    values = vector.astype(np.float64)
    with np.errstate(divide="ignore"):
        decimals = 8 - np.floor(np.log10(np.abs(values)))
    scales = _POWERS[np.clip(decimals, 0, len(_POWERS) - 1).astype(np.intp)]
    rounded = np.rint(values * scales) / scales
    found: list[float] = (rounded if np.array_equal(rounded.astype(np.float32), vector) else values).tolist()
    return found


def text_query(index: SearchIndex, match: Match | str) -> TextQuery:
    """Return a checked :class:`Match`.

    Raises:
        InvalidText: the text is none, too long, or no Unicode.
        InvalidOption: no such field, or an option out of its range.
    """
    match = Match(match) if isinstance(match, str) else match
    if not isinstance(match, Match):
        raise InvalidOption(f"text= is a string or Match(...), got {type(match).__name__}")
    _check_text(match.text)
    if not isinstance(match.fields, Iterable):
        raise InvalidOption(f"fields= is a list of names of fields, got {type(match.fields).__name__}")
    fields = [match.fields] if isinstance(match.fields, str) else list(match.fields)
    searched = [_text_field(index, name) for name in fields] or [(name, name) for name in _texts(index)]
    if not searched:
        raise InvalidOption("the index has no text field to search; declare one by Text(...), or give fields=")
    body: dict[str, Any] = {
        "query": match.text,
        "fields": [boosted for _, boosted in searched],
        "type": _choice(match.type, "type", ("best_fields", "most_fields", "cross_fields")),
        "operator": _choice(match.operator, "operator", ("or", "and")),
    }
    if match.fuzziness is not None:
        if match.type == "cross_fields":
            raise InvalidOption('fuzziness= is not for type="cross_fields", which Elasticsearch searches word by word')
        body["fuzziness"] = _choice(match.fuzziness, "fuzziness", ("AUTO", 0, 1, 2))
    if match.minimum_should_match is not None:
        least = str(match.minimum_should_match)
        if isinstance(match.minimum_should_match, bool) or not _SHOULD_MATCH.match(least):
            raise InvalidOption(f'minimum_should_match is a number or a part such as "75%", got {least!r}')
        body["minimum_should_match"] = least
    return TextQuery({"multi_match": body}, tuple(name for name, _ in searched))


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise InvalidText(f"a text to search for must be a string, got {type(text).__name__}")
    if len(text) > MAX_TEXT:
        raise InvalidText(f"a text to search for may have {MAX_TEXT:,} characters, got {len(text):,}; shorten it")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidText("a text to search for has a lone surrogate, so it is no Unicode") from None


def _texts(index: SearchIndex) -> list[str]:
    return [spec.name for spec in index.fields.values() if spec.kind == "text" and spec.is_indexed]


def _text_field(index: SearchIndex, given: object) -> tuple[str, str]:
    """Return a field's name, without and with its boost."""
    found = _FIELD.match(given) if isinstance(given, str) else None
    if found is None:
        raise InvalidOption(f'a field to search is a name, or "title^2" to count twice; got {given!r}')
    name, boost = found.groups()
    spec = index.fields.get(name)
    if spec is None or spec.kind not in ("text", "keyword"):
        raise InvalidOption(f"{name!r} is no text or keyword field of the index; there are {', '.join(_texts(index))}")
    if not spec.is_indexed:
        raise InvalidOption(f"the field {name!r} is not indexed, so that no word of it is found; name another one")
    return name, name if boost is None else f"{name}^{boost}"


def _choice(value: Any, name: str, choices: tuple[Any, ...]) -> Any:
    if isinstance(value, bool) or value not in choices:
        raise InvalidOption(f"{name}= is one of {', '.join(map(str, choices))}; got {value!r}")
    return value


def _vector_field(index: SearchIndex, name: object) -> DenseVectorSpec:
    spec = index.vectors.get(name) if isinstance(name, str) else None
    if spec is None:
        raise InvalidOption(f"{name!r} is no vector field of the index; there are {', '.join(index.vectors) or 'none'}")
    return spec


def _exact_field(index: SearchIndex, knn: Knn) -> DenseVectorSpec:
    spec = _vector_field(index, knn.field)
    for one in (spec, *index.vectors.values()):
        if one.index == "flat" and (one.path, one.metric) == (spec.path, spec.metric):
            return one
    raise InvalidOption(
        f"exact=True needs a field that is not a graph: declare {knn.field!r}, or a second field beside it, "
        f'as DenseVector({spec.path!r}, metric={spec.metric!r}, index="flat")'
    )


def _check_oversample(oversample: object, spec: DenseVectorSpec) -> None:
    if oversample is None:
        return
    is_number = isinstance(oversample, (int, float)) and not isinstance(oversample, bool)
    if not is_number or not (oversample == 0 or 1 <= oversample < 10):  # type: ignore[operator]
        raise InvalidOption(f"oversample= is 0, or from 1 to less than 10; got {oversample!r}")
    if spec.index in _FULL_PRECISION:
        raise InvalidOption(f"oversample= is about quantized vectors, and {spec.name!r} has full ones ({spec.index})")


def _oversample(oversample: float | None, spec: DenseVectorSpec) -> float | None:
    """Return what to ask for, None for what the server does by itself."""
    if oversample is not None or "rescore_vector" in spec.parameters["index_options"]:
        return oversample
    # Without, the recall of int8 was 0.85 to 0.94 and that of int4 0.72 to 0.75 (5,000 x 64 and x 384); the server's
    # own factor for bbq is 3, with which it was 0.93.
    return next((factor for kind, factor in _OVERSAMPLES if spec.index.startswith(kind)), None)


def _max_distance(knn: Knn, spec: DenseVectorSpec) -> float | None:
    if knn.max_distance is not None and knn.min_similarity is not None:
        raise InvalidOption("give max_distance or min_similarity, not both")
    for name, value in (("max_distance", knn.max_distance), ("min_similarity", knn.min_similarity)):
        if value is not None and as_float(value) is None:
            raise InvalidOption(f"{name} must be a number, got {shown(value)}")
    if knn.min_similarity is not None:
        return METRICS[spec.metric].distance(float(knn.min_similarity), spec.dim)
    return None if knn.max_distance is None else float(knn.max_distance)
