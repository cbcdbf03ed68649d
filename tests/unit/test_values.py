"""The four codecs: what is a vector, and that every format gives back what was put in."""

from __future__ import annotations

import json
import pickle
from array import array
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sqla_vector import DimensionMismatch, InvalidOption, InvalidVector, NonFiniteVector, SparseArray
from sqla_vector.values import Codec, as_matrix, codec_for

FLOAT32 = st.floats(allow_nan=False, allow_infinity=False, width=32)
FLOAT16 = st.floats(allow_nan=False, allow_infinity=False, width=16)
LENGTHS = st.integers(1, 40)

VECTORS = hnp.arrays(np.float32, LENGTHS, elements=FLOAT32)
HALVES = hnp.arrays(np.float16, LENGTHS, elements=FLOAT16)
BITS = hnp.arrays(np.bool_, LENGTHS)


@st.composite
def sparse_arrays(draw: st.DrawFn) -> SparseArray:
    dim = draw(st.integers(1, 1_000_000_000))
    elements = draw(st.dictionaries(st.integers(0, dim - 1), FLOAT32.filter(bool), max_size=20))
    return SparseArray(dim, elements)


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "vector": VECTORS,
    "halfvec": HALVES,
    "sparsevec": sparse_arrays(),
    "bit": BITS,
}
KIND_AND_VALUE = st.sampled_from(sorted(VALUES)).flatmap(lambda kind: st.tuples(st.just(kind), VALUES[kind]))


def dimension(value: Any) -> int:
    return value.dim if isinstance(value, SparseArray) else len(value)


def same(left: Any, right: Any) -> bool:
    """Whether two values are the same in type and to the last bit."""
    if isinstance(left, SparseArray):
        return bool(left == right)
    return bool(left.dtype == right.dtype and left.tobytes() == right.tobytes())


def is_read_only(value: Any) -> bool:
    arrays = (value.indices, value.values) if isinstance(value, SparseArray) else (value,)
    return not any(part.flags.writeable for part in arrays)


def fixed_and_free(kind: str, value: Any) -> tuple[Codec[Any], Codec[Any]]:
    return codec_for(kind, dimension(value)), codec_for(kind, None)


@given(KIND_AND_VALUE)
def test_binary_gives_back_the_value(pair: tuple[str, Any]) -> None:
    kind, value = pair
    for codec in fixed_and_free(kind, value):
        found = codec.from_binary(codec.to_binary(value))
        assert same(found, value)
        assert is_read_only(found)


@given(KIND_AND_VALUE)
def test_a_blob_gives_back_the_value(pair: tuple[str, Any]) -> None:
    kind, value = pair
    codec = codec_for(kind, dimension(value))
    found = codec.from_blob(codec.to_blob(value))
    assert same(found, value)
    assert is_read_only(found)


@given(VECTORS)
def test_the_text_of_a_vector_is_exact(value: Any) -> None:
    for codec in fixed_and_free("vector", value):
        found = codec.from_text(codec.to_text(value))  # type: ignore[attr-defined]
        assert same(found, value)
        # sqlite-vec takes text too, and Python code may have stored it.
        assert same(codec.from_blob(codec.to_text(value)), value)


@given(HALVES)
def test_the_text_of_a_half_vector_is_exact(value: Any) -> None:
    codec = codec_for("halfvec", len(value))
    assert same(np.asarray(json.loads(codec.to_text(value), parse_int=float), np.float16), value)
    assert same(codec.from_blob(codec.to_text(value)), value)


@given(sparse_arrays())
def test_the_text_of_a_sparse_vector_is_exact_and_counts_from_one(value: SparseArray) -> None:
    elements, dim = codec_for("sparsevec", value.dim).to_text(value).rsplit("/", 1)
    pairs = [element.split(":") for element in elements[1:-1].split(",") if element]
    assert SparseArray(int(dim), {int(i) - 1: float(v) for i, v in pairs}) == value


@given(BITS)
def test_the_text_of_bits_is_one_character_a_bit(value: Any) -> None:
    text = codec_for("bit", len(value)).to_text(value)
    assert [character == "1" for character in text] == value.tolist()
    assert set(text) <= {"0", "1"}


@given(KIND_AND_VALUE)
def test_a_value_equals_its_copy_and_its_list(pair: tuple[str, Any]) -> None:
    kind, value = pair
    codec = codec_for(kind, dimension(value))
    assert codec.equal(value, value)
    assert codec.equal(value, pickle.loads(pickle.dumps(value)))
    if not isinstance(value, SparseArray):
        assert codec.equal(value, value.copy())
        assert codec.equal(value, value.tolist())


@given(KIND_AND_VALUE)
def test_none_equals_none_only(pair: tuple[str, Any]) -> None:
    kind, value = pair
    codec = codec_for(kind, dimension(value))
    assert codec.equal(None, None)
    assert not codec.equal(value, None)
    assert not codec.equal(None, value)


@given(VECTORS, st.data())
def test_a_vector_that_differs_in_one_element_is_unequal(value: Any, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(value) - 1))
    other = value.copy()
    other[position] = np.nextafter(value[position], np.float32(0)) if value[position] else 1.0
    assert not codec_for("vector", len(value)).equal(value, other)


@pytest.mark.parametrize("kind", sorted(VALUES))
def test_what_is_no_vector_equals_nothing(kind: str) -> None:
    codec = codec_for(kind, 2)
    for other in ("[0,1]", [0, 1, 1], [float("nan"), 1], object()):
        assert not codec.equal([0, 1], other)
        assert not codec.equal(other, [0, 1])


@given(VECTORS)
def test_every_form_of_the_same_numbers_is_the_same_vector(value: Any) -> None:
    codec = codec_for("vector", len(value))
    spread = np.zeros((len(value), 3), np.float32)
    spread[:, 1] = value
    forms = [
        value.tolist(),
        tuple(value.tolist()),
        list(value),
        value.astype(np.float64),
        value.astype(">f4"),
        value.astype(">f8"),
        spread[:, 1],
        value[::-1][::-1],
        array("f", value),
        array("d", value),
        memoryview(value),
        np.asfortranarray(value),
    ]
    for form in forms:
        found = codec.coerce(form, "item.e")
        assert same(found, value), type(form)
        assert found.flags.c_contiguous
        assert found.dtype.isnative


@given(hnp.arrays(hnp.integer_dtypes(sizes=(8, 16)) | hnp.unsigned_integer_dtypes(sizes=(8, 16)), LENGTHS))
def test_whole_numbers_of_any_byte_order_are_accepted(value: Any) -> None:
    for kind, dtype in (("vector", np.float32), ("sparsevec", np.float32)):
        found = codec_for(kind, len(value)).coerce(value, "item.e")
        dense = found.to_dense() if isinstance(found, SparseArray) else found
        assert dense.dtype == dtype
        assert dense.tolist() == value.tolist()


def test_big_integers_of_python_are_numbers() -> None:
    assert codec_for("vector", 2).coerce([2**70, 1], "item.e").tolist() == [2.0**70, 1.0]
    with pytest.raises(NonFiniteVector, match=r"item\.e: element 0 .* overflows float32"):
        codec_for("vector", 2).coerce([2**200, 1], "item.e")


@pytest.mark.parametrize("kind", ["vector", "halfvec", "sparsevec"])
def test_the_zero_vector_is_a_vector(kind: str) -> None:
    codec = codec_for(kind, 3)
    value = codec.coerce([0, 0, 0], "item.e")
    assert codec.equal(codec.from_blob(codec.to_blob(value)), [0.0, 0.0, 0.0])


def test_pgvector_values_are_accepted() -> None:
    pgvector = pytest.importorskip("pgvector", reason="pip install pgvector")
    assert codec_for("vector", 3).coerce(pgvector.Vector([1, 2, 3]), "e").tolist() == [1, 2, 3]
    assert codec_for("halfvec", 3).coerce(pgvector.HalfVector([1, 2, 3]), "e").tolist() == [1, 2, 3]
    assert codec_for("sparsevec", 3).coerce(pgvector.SparseVector({1: 2.0}, 3), "e") == SparseArray(3, {1: 2.0})
    assert codec_for("bit", 3).coerce(pgvector.Bit([True, False, True]), "e").tolist() == [True, False, True]


def test_scipy_sparse_arrays_are_accepted() -> None:
    sparse = pytest.importorskip("scipy.sparse", reason="pip install scipy")
    expected = SparseArray(4, {1: 2.0, 3: -1.0})
    row = np.array([[0, 2, 0, -1]], np.float64)
    for made in (sparse.csr_array(row), sparse.coo_matrix(row), sparse.csc_matrix(row), sparse.coo_array(row[0])):
        assert codec_for("sparsevec", 4).coerce(made, "item.e") == expected
    single = sparse.csr_array(np.array([[3.0]]))
    assert codec_for("sparsevec", 1).coerce(single, "item.e") == SparseArray(1, {0: 3.0})
    column = sparse.csc_array(row.T)
    assert codec_for("sparsevec", 4).coerce(column, "item.e") == expected
    repeated = sparse.coo_array((np.array([1.0, 1.0, -1.0]), (np.array([0, 0, 0]), np.array([1, 1, 3]))), shape=(1, 4))
    assert codec_for("sparsevec", 4).coerce(repeated, "item.e") == expected
    # A dense copy of this one would take gigabytes.
    huge = sparse.coo_array((np.array([5.0]), (np.array([0]), np.array([999_999_999]))), shape=(1, 1_000_000_000))
    assert codec_for("sparsevec", None).coerce(huge, "item.e") == SparseArray(1_000_000_000, {999_999_999: 5.0})


def test_sparse_vectors_of_other_packages_are_refused_naming_the_column() -> None:
    sparse = pytest.importorskip("scipy.sparse", reason="pip install scipy")
    pgvector = pytest.importorskip("pgvector", reason="pip install pgvector")
    codec = codec_for("sparsevec", 4)
    for value, error, message in (
        (sparse.csr_array(np.ones((2, 4))), InvalidVector, r"got a sparse array of shape \(2, 4\)"),
        (sparse.csr_array(np.ones((1, 3))), DimensionMismatch, "expected 4 dimensions, got 3"),
        (sparse.csr_array(np.array([[0, np.nan, 0, 0]])), NonFiniteVector, "expected a finite number"),
        (sparse.csr_array(np.array([[0, 1j, 0, 0]])), InvalidVector, "expected numbers, got an array of complex128"),
        (
            sparse.csr_array(np.array([[False, True, False, False]])),
            InvalidVector,
            "expected numbers, got an array of bool",
        ),
        (pgvector.SparseVector({1: 2.0}, 3), DimensionMismatch, "expected 4 dimensions, got 3"),
        (pgvector.SparseVector({1: float("nan")}, 4), NonFiniteVector, "expected a finite number"),
        (pgvector.SparseVector({1: 1e39}, 4), NonFiniteVector, "overflows float32"),
    ):
        with pytest.raises(error, match=message) as caught:
            codec.coerce(value, "item.e")
        assert str(caught.value).startswith("item.e: ")


def test_bits_are_booleans_or_the_numbers_zero_and_one() -> None:
    codec = codec_for("bit", 3)
    for value in ([True, False, True], [1, 0, 1], (1.0, 0.0, 1.0), np.array([1, 0, 1], np.int8), array("B", [1, 0, 1])):
        assert codec.coerce(value, "item.e").tolist() == [True, False, True]


# What bad_inputs says of vectors: each is refused with a typed error that names the column.
BAD_VECTORS: dict[str, tuple[Any, type[InvalidVector], str]] = {
    "nan": ([1.0, float("nan"), 3.0], NonFiniteVector, "element 1 is nan, expected a finite number"),
    "+inf": ([float("inf"), 2.0, 3.0], NonFiniteVector, "element 0 is inf"),
    "-inf": (np.array([1.0, 2.0, -np.inf]), NonFiniteVector, "element 2 is -inf"),
    "float32 overflow": ([1.0, 1e39, 3.0], NonFiniteVector, r"element 1 is 1e\+39, which overflows float"),
    "empty list": ([], DimensionMismatch, "needs at least one element"),
    "empty array": (np.empty(0), DimensionMismatch, "needs at least one element"),
    "scalar": (1.5, InvalidVector, "expected a sequence of numbers, got float"),
    "numpy scalar": (np.float32(1.5), InvalidVector, "expected one dimension"),
    "0-d array": (np.array(1.5), InvalidVector, r"expected one dimension, got an array of shape \(\)"),
    "nested list": ([[1.0, 2.0, 3.0]], InvalidVector, "element 0 is nested"),
    "matrix": (np.ones((1, 3)), InvalidVector, r"expected one dimension, got an array of shape \(1, 3\)"),
    "ragged": ([1.0, [2.0], 3.0], InvalidVector, "element 1 is nested"),
    "strings": (["1", "2", "3"], InvalidVector, "element 0 is text"),
    "string array": (np.array(["1", "2", "3"]), InvalidVector, "expected numbers, got an array of <U1"),
    "bools": ([True, False, True], InvalidVector, "element 0 is a bool"),
    "bool among numbers": ([1.0, 2.0, np.True_], InvalidVector, "element 2 is a bool"),
    "bool array": (np.array([True, False, True]), InvalidVector, "expected numbers, got an array of bool"),
    "complex": ([1j, 2, 3], InvalidVector, "element 0 is complex"),
    "complex array": (np.array([1j, 2, 3]), InvalidVector, "expected numbers, got an array of complex128"),
    "bytes, not of 4": (b"\0\0\0\0\0", InvalidVector, "got bytes"),
    "bytes of 12": (b"\0" * 12, InvalidVector, "got bytes"),
    "bytearray": (bytearray(12), InvalidVector, "got bytearray"),
    "text": ("[1,2] x", InvalidVector, "got str"),
    "good text": ("[1,2,3]", InvalidVector, "got str"),
    "none inside": ([1.0, None, 3.0], InvalidVector, "element 1 is None"),
    "too few": ([1.0, 2.0], DimensionMismatch, "expected 3 dimensions, got 2"),
    "too many": ([1.0, 2.0, 3.0, 4.0], DimensionMismatch, "expected 3 dimensions, got 4"),
    "objects": ([object(), 1, 2], InvalidVector, "expected a flat sequence of numbers"),
    "object array": (np.array([1, "a", None], object), InvalidVector, "expected numbers, got an array of object"),
    "dates": (np.array(["2020-01-01"] * 3, "M8[D]"), InvalidVector, "expected numbers"),
    "masked": (np.ma.masked_array([1.0, 2.0, 3.0], [0, 1, 0]), InvalidVector, "masked array"),
    "generator": ((x for x in (1.0, 2.0, 3.0)), InvalidVector, "got generator"),
    "set": ({1.0, 2.0, 3.0}, InvalidVector, "got set"),
    "mapping": ({0: 1.0}, InvalidVector, "got dict"),
    "structured": (np.zeros(3, [("a", "f4")]), InvalidVector, "expected numbers"),
}


@pytest.mark.parametrize("kind", ["vector", "halfvec", "sparsevec"])
@pytest.mark.parametrize("name", sorted(BAD_VECTORS))
def test_what_is_no_vector_is_refused_naming_the_column(kind: str, name: str) -> None:
    value, error, message = BAD_VECTORS[name]
    if name == "generator":
        value = (x for x in (1.0, 2.0, 3.0))
    with pytest.raises(error, match=message) as caught:
        codec_for(kind, 3).coerce(value, "article.embedding")
    assert type(caught.value) is error
    assert str(caught.value).startswith("article.embedding: ")


@pytest.mark.parametrize(
    "name", sorted(set(BAD_VECTORS) - {"bools", "bool array", "bool among numbers", "float32 overflow"})
)
def test_what_is_no_bit_vector_is_refused_naming_the_column(name: str) -> None:
    value, _, _ = BAD_VECTORS[name]
    if name == "generator":
        value = (x for x in (1.0, 2.0, 3.0))
    with pytest.raises(InvalidVector) as caught:
        codec_for("bit", 3).coerce(value, "article.bits")
    assert str(caught.value).startswith("article.bits: ")


def test_a_bit_is_nothing_but_zero_or_one() -> None:
    for value in ([0, 1, 2], [0.5, 0, 1], np.array([-1, 0, 1])):
        with pytest.raises(InvalidVector, match=r"item\.b: expected booleans, or the numbers 0 and 1"):
            codec_for("bit", 3).coerce(value, "item.b")


def test_half_vectors_refuse_what_float16_cannot_hold() -> None:
    codec = codec_for("halfvec", 2)
    for value in ([1.0, 70000.0], np.array([1, 70000]), np.array([1.0, 70000.0], ">f4")):
        with pytest.raises(NonFiniteVector, match=r"item\.h: element 1 is 70000(\.0)?, which overflows float16"):
            codec.coerce(value, "item.h")
    assert codec.coerce([1.0, 65504.0], "item.h").tolist() == [1.0, 65504.0]


def test_a_refusal_never_shows_the_whole_vector() -> None:
    secret = [0.123456] * 999 + [float("nan")]
    with pytest.raises(NonFiniteVector) as caught:
        codec_for("vector", 1000).coerce(secret, "item.e")
    assert "0.123456" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("dim", [0, -1, 2.5, "3", True, 16_001, float("nan"), np.float64(3), b"3", [3]])
@pytest.mark.parametrize("name", ["Vector", "HalfVector"])
def test_a_dimension_out_of_range_is_refused(name: str, dim: Any) -> None:
    import sqla_vector

    with pytest.raises(InvalidOption, match=rf"^{name}\(.*\): the dimension must be a whole number from 1 to 16,000"):
        getattr(sqla_vector, name)(dim)


@pytest.mark.parametrize(("name", "dim"), [("BitVector", 64_001), ("SparseVector", 1_000_000_001), ("BitVector", 0)])
def test_bits_and_sparse_vectors_have_their_own_largest_dimension(name: str, dim: int) -> None:
    import sqla_vector

    with pytest.raises(InvalidOption, match=rf"^{name}\({dim}\)"):
        getattr(sqla_vector, name)(dim)


def test_dimensions_at_the_limits_and_of_numpy_are_accepted() -> None:
    from sqla_vector import BitVector, HalfVector, SparseVector, Vector

    assert [Vector(1).dim, Vector(16_000).dim, HalfVector(16_000).dim] == [1, 16_000, 16_000]
    assert [BitVector(64_000).dim, SparseVector(1_000_000_000).dim] == [64_000, 1_000_000_000]
    assert type(Vector(np.int64(3)).dim) is int
    assert Vector().dim is None


class TestSparseArray:
    def test_zeros_are_dropped_and_indices_sorted(self) -> None:
        value = SparseArray(9, {7: 1.5, 2: 0.0, 0: -2.0})
        assert value.indices.tolist() == [0, 7]
        assert value.values.tolist() == [-2.0, 1.5]
        assert (value.indices.dtype, value.values.dtype) == (np.int32, np.float32)

    def test_a_mapping_a_pair_and_a_dense_vector_make_the_same(self) -> None:
        made = [
            SparseArray(4, {1: 2.0, 3: 0.5}),
            SparseArray(4, ([3, 1], [0.5, 2.0])),
            SparseArray(4, (np.array([1, 3], np.int64), np.array([2.0, 0.5]))),
            SparseArray.from_dense([0, 2, 0, 0.5]),
        ]
        assert set(made) == {made[0]}
        assert all(value.to_dense().tolist() == [0, 2, 0, 0.5] for value in made)

    def test_the_empty_one_has_no_elements(self) -> None:
        for value in (SparseArray(3, {}), SparseArray(3, ([], [])), SparseArray.from_dense([0, 0, 0])):
            assert value.indices.size == value.values.size == 0
            assert value.to_dense().tolist() == [0, 0, 0]

    def test_equality_is_of_dimension_and_elements(self) -> None:
        value = SparseArray(3, {1: 2.0})
        assert value == SparseArray(3, {1: 2.0, 2: 0.0})
        assert value != SparseArray(4, {1: 2.0})
        assert value != SparseArray(3, {2: 2.0})
        assert value != SparseArray(3, {1: 2.5})
        assert value != {1: 2.0}
        assert hash(value) == hash(SparseArray(3, {1: 2.0}))

    def test_its_repr_makes_it_again(self) -> None:
        value = SparseArray(5, {1: 2.0, 3: 0.5})
        assert repr(value) == "SparseArray(5, {1: 2.0, 3: 0.5})"
        assert eval(repr(value)) == value  # noqa: S307

    def test_it_is_read_only(self) -> None:
        value = SparseArray(3, {1: 2.0})
        with pytest.raises(ValueError, match="read-only"):
            value.values[0] = 1.0
        with pytest.raises(ValueError, match="read-only"):
            value.indices[0] = 1

    @given(sparse_arrays())
    def test_it_pickles_and_dense_form_gives_it_back(self, value: SparseArray) -> None:
        assert pickle.loads(pickle.dumps(value)) == value
        if value.dim <= 1000:
            assert SparseArray.from_dense(value.to_dense()) == value

    @pytest.mark.parametrize(
        ("dim", "elements", "message"),
        [
            (3, {3: 1.0}, r"an index is outside 0\.\.2"),
            (3, {-1: 1.0}, r"an index is outside 0\.\.2"),
            (3, {2**40: 1.0}, r"an index is outside 0\.\.2"),
            (3, ([1, 1], [1.0, 2.0]), "an index is repeated"),
            (3, ([1], [1.0, 2.0]), "1 indices but 2 values"),
            (3, {1.5: 1.0}, "indices must be whole numbers"),
            (3, {True: 1.0}, "indices must be whole numbers"),
            (3, {"1": 1.0}, "indices must be whole numbers"),
            (3, {1: float("nan")}, "expected a finite number"),
            (3, {1: 1e39}, "overflows float32"),
            (3, {1: "x"}, "is text"),
            (3, {1: True}, "is a bool"),
            (3, {1: 1j}, "is complex"),
        ],
    )
    def test_bad_elements_are_refused(self, dim: int, elements: Any, message: str) -> None:
        with pytest.raises(InvalidVector, match=message):
            SparseArray(dim, elements)

    @pytest.mark.parametrize("dim", [0, -1, 2.5, "3", True, None, 1_000_000_001])
    def test_bad_dimensions_are_refused(self, dim: Any) -> None:
        with pytest.raises(InvalidOption, match="dimension"):
            SparseArray(dim, {})

    def test_another_dimension_than_the_columns_is_refused(self) -> None:
        with pytest.raises(DimensionMismatch, match=r"item\.s: expected 3 dimensions, got 4"):
            codec_for("sparsevec", 3).coerce(SparseArray(4, {}), "item.s")


class TestMatrices:
    @given(hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=FLOAT32))
    def test_rows_and_a_matrix_are_the_same(self, matrix: Any) -> None:
        dim = matrix.shape[1]
        for form in (matrix, matrix.tolist(), list(matrix), matrix.astype(">f8"), np.asfortranarray(matrix)):
            found = as_matrix(form, dim, "item.e")
            assert found.dtype == np.float32
            assert found.flags.c_contiguous
            assert same(found, matrix)

    def test_no_rows_make_an_empty_matrix(self) -> None:
        assert as_matrix([], 3, "item.e").shape == (0, 3)

    @pytest.mark.parametrize(
        ("values", "error", "message"),
        [
            ([[1, 2], [3, float("nan")]], NonFiniteVector, r"item\.e, row 1: element 1 is nan"),
            (np.array([[1, 2], [np.inf, 3]]), NonFiniteVector, r"item\.e, row 1: element 0 is inf"),
            (np.array([[1, 1e39]]), NonFiniteVector, r"item\.e, row 0: element 1 is 1e\+39, which overflows"),
            (np.ones(2), InvalidVector, r"item\.e: expected an array of shape \(n, 2\), got shape \(2,\)"),
            (np.ones((2, 3)), DimensionMismatch, r"item\.e: expected 2 dimensions, got 3"),
            ([[1, 2], [1, 2, 3]], DimensionMismatch, r"item\.e, row 1: expected 2 dimensions, got 3"),
            (np.array([[True, False]]), InvalidVector, r"item\.e, row 0: expected numbers"),
        ],
    )
    def test_bad_rows_are_refused_with_their_number(self, values: Any, error: Any, message: str) -> None:
        with pytest.raises(error, match=message):
            as_matrix(values, 2, "item.e")
