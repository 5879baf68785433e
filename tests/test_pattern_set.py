"""The set of distinct patterns (csrc/patterns.cpp) against NumPy's unique rows."""

import itertools

import numpy as np
import pytest

from lmn import _core


def put(
    words: np.ndarray, index: np.ndarray, *, batch: int, threads: int = 1, verify: bool = False, count: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    patterns, keys = _core.PatternSet(words.shape[1], verify), np.full(len(words), -1)
    for first in range(0, len(words), batch):
        part = slice(first, first + batch)
        patterns.insert(words[part], index[part], None if count is None else count[part], threads, keys[part])
    assert patterns.collisions == 0
    return (*patterns.take(keys), keys)


def check(words: np.ndarray, index: np.ndarray, count: np.ndarray | None = None, **options: int) -> None:
    rows, counts, first, keys = put(words, index, count=count, **options)
    points = np.ones(len(words), dtype=np.int64) if count is None else count
    expected, inverse = np.unique(words, axis=0, return_inverse=True)
    inverse = inverse.ravel()
    assert len(rows) == len(expected)
    np.testing.assert_array_equal(rows[keys], words)
    np.testing.assert_array_equal(counts[keys], np.bincount(inverse, points).astype(np.int64)[inverse])
    earliest = np.full(len(expected), np.iinfo(np.int64).max)
    np.minimum.at(earliest, inverse, index)
    np.testing.assert_array_equal(first[keys], earliest[inverse])
    assert (np.diff(first) > 0).all()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("batch", [1, 77, 40_000])  # 40,000 are more than are put in together
@pytest.mark.parametrize("n_distinct", [1, 300, 30_000])
def test_rows_counts_and_first_points(n_distinct: int, batch: int, threads: int) -> None:
    rng = np.random.default_rng(n_distinct)
    n = 40_000 if batch > 1 else 2000
    words = rng.integers(0, 2**63, (n_distinct, 5), dtype=np.uint64)[rng.integers(0, n_distinct, n)]
    check(words, np.arange(n), batch=batch, threads=threads)


def test_patterns_that_come_in_another_order_than_their_points() -> None:
    rng = np.random.default_rng(0)
    words = rng.integers(0, 3, (5000, 4), dtype=np.uint64)
    check(words, rng.permutation(5000), count=rng.integers(1, 9, 5000), batch=640)


@pytest.mark.parametrize("n_words", [1, 2, 10])
def test_patterns_that_differ_in_one_bit_or_two(n_words: int) -> None:
    # A hash that adds up products of words and constants, or xors them, loses some of these.
    base = np.random.default_rng(n_words).integers(0, 2**63, n_words, dtype=np.uint64)
    bits = np.eye(64 * n_words, dtype=bool)
    pairs = np.array([bits[i] | bits[j] for i, j in itertools.combinations(range(64 * n_words), 2)])
    flips = np.packbits(np.concatenate([bits, pairs]), axis=1, bitorder="little").view(np.uint64)
    words = flips ^ base
    assert len(put(words, np.arange(len(words)), batch=1 << 14, threads=2)[0]) == len(words)


def test_the_same_words_in_another_order_are_another_pattern() -> None:
    words = np.array(list(itertools.permutations(range(7))), dtype=np.uint64)
    assert len(put(words, np.arange(len(words)), batch=1000)[0]) == len(words)


def test_nothing_put_in() -> None:
    rows, counts, first = _core.PatternSet(3, verify=False).take()
    assert (rows.shape, counts.shape, first.shape) == ((0, 3), (0,), (0,))


def test_words_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="words are"):
        _core.PatternSet(3, verify=False).insert(np.zeros((2, 2), dtype=np.uint64), np.arange(2), None, 1, None)
