"""The gallery's answers are the answers: checked against LAPACK on small sizes."""

from __future__ import annotations

import pickle
import tracemalloc

import numpy as np
import pytest
import scipy.linalg
from helpers import each_of

from dlscale import gallery
from dlscale.errors import SpecError
from dlscale.gallery import SpectrumMatrix

DTYPES = ["f4", "f8", "c8", "c16"]
EPS = np.finfo(np.float64).eps

SHAPES = [
    (1, 1, 1, "one entry"),
    (5, 1, 1, "one column"),
    (1, 7, 1, "one row: the zero frequency is the only one"),
    (64, 64, 64, "one tile, square and full rank: r = m"),
    (65, 40, 40, "one row over a tile"),
    (300, 37, 11, "tall, prime width, rank below n"),
    (50, 200, 50, "wide, r = m"),
    (50, 200, 49, "wide, r = m - 1: the largest centred rank"),
]


@each_of(dtype=DTYPES)
@pytest.mark.parametrize(("m", "n", "r", "why"), SHAPES)
def test_spectrum_and_factors_are_exact(m, n, r, why, dtype):
    s = gallery.geometric(r, 1e3)
    matrix = SpectrumMatrix((m, n), s, seed=3, dtype=np.dtype(dtype))
    A, U, Vh = matrix.rows(0, m), matrix.u(0, m), matrix.vh()
    assert A.shape == (m, n)
    assert A.dtype == np.dtype(dtype)
    assert A.flags.c_contiguous
    # ||U^H U - I|| and ||V^H V - I|| of a few eps, entry by entry
    assert abs(U.conj().T @ U - np.eye(r)).max() < 16 * EPS
    assert abs(Vh @ Vh.conj().T - np.eye(r)).max() < 16 * EPS
    eps = np.finfo(dtype).eps
    # ||A - U S V^H|| <= c eps ||A||, and Weyl: |sigma_i(A) - s_i| <= ||A - U S V^H||
    assert np.linalg.norm(A - (U * s) @ Vh, 2) < 16 * eps * s[0]
    assert abs(scipy.linalg.svdvals(A.astype("c16"))[:r] - s).max() < 16 * eps * s[0]
    if r < m:
        assert abs(U.sum(axis=0)).max() < 16 * EPS * np.sqrt(m)


@each_of(dtype=DTYPES)
@pytest.mark.parametrize(("start", "stop"), [(0, 0), (0, 1), (63, 65), (100, 997), (990, 1000), (1, 900)])
def test_rows_have_the_same_bits_however_they_are_cut(start, stop, dtype):
    matrix = SpectrumMatrix((1000, 150), gallery.power(120), seed=1, dtype=np.dtype(dtype))
    np.testing.assert_array_equal(matrix.rows(start, stop), matrix.rows(0, 1000)[start:stop])
    np.testing.assert_array_equal(matrix.u(start, stop), matrix.u(0, 1000)[start:stop])


@pytest.mark.parametrize("dtype", ["f8", "c16"])
def test_a_billion_rows_keep_their_accuracy(dtype):
    # Angles are reduced in integers: the last rows are as accurate as the first. Compared with 80-bit cosines.
    m = 1_000_000_007
    matrix = SpectrumMatrix((m, 8), gallery.power(3), dtype=np.dtype(dtype))
    rows = range(m - 70, m)
    period = m if dtype == "c16" else 4 * m
    exact = np.empty((70, 3), np.clongdouble)
    for i, row in enumerate(rows):
        for j, f in enumerate(matrix._left.tolist()):
            turn = (row if dtype == "c16" else 2 * row + 1) * f % period
            angle = 2 * np.longdouble("3.14159265358979323846264338") * turn / period
            exact[i, j] = np.cos(angle) + 1j * np.sin(angle)
    exact *= np.longdouble(1 if dtype == "c16" else 2) ** 0.5 / np.longdouble(m) ** 0.5
    expected = exact if dtype == "c16" else exact.real
    assert abs(matrix.u(m - 70, m) - expected).max() < 8 * EPS * np.sqrt(2 / m)


def test_principal_components_are_known_whatever_the_offset():
    m, n, k = 400, 30, 30
    s = gallery.power(k, 1.0) * np.sqrt(m)
    matrix = SpectrumMatrix((m, n), s, offset=1e4)
    A = matrix.rows(0, m)
    mean = A.mean(axis=0)
    assert abs(mean - 1e4).max() < 1e-9
    # A rounds to eps 1e4 an entry, so sigma_i moves by at most eps 1e4 sqrt(m n)
    np.testing.assert_allclose(scipy.linalg.svdvals(A - mean), s, atol=EPS * 1e4 * np.sqrt(m * n))


def test_seed_and_pickle():
    matrix = SpectrumMatrix((70, 20), gallery.flat(5), seed=7, dtype=np.dtype("c8"), offset=2.0)
    A = matrix.rows(0, 70)
    copy = pickle.loads(pickle.dumps(matrix))
    np.testing.assert_array_equal(copy.rows(0, 70), A)
    assert len(pickle.dumps(matrix)) < 2000
    assert abs(SpectrumMatrix((70, 20), gallery.flat(5), seed=8).rows(0, 70) - A).max() > 0.01


@pytest.mark.parametrize(
    ("shape", "s", "dtype"),
    [
        ((0, 3), [1], "f8"),
        ((3, 3), [1] * 4, "f8"),
        ((3, 3), [1, 2], "f8"),
        ((3, 3), [1, -1], "f8"),
        ((3, 3), [1], "i4"),
        ((3, 3), [], "f8"),
    ],
)
def test_bad_requests_are_refused(shape, s, dtype):
    with pytest.raises(SpecError):
        SpectrumMatrix(shape, s, dtype=np.dtype(dtype))
    with pytest.raises(SpecError, match="got 2:9"):
        SpectrumMatrix((8, 8), [1]).rows(2, 9)


def test_spectra():
    np.testing.assert_allclose(gallery.power(4), [1, 2**-0.5, 3**-0.5, 0.5])
    s = gallery.geometric(9, 1e8)
    assert s[0] / s[-1] == pytest.approx(1e8)
    np.testing.assert_array_equal(gallery.step(4, 2, small=0.1), [1, 1, 0.1, 0.1])
    np.testing.assert_array_equal(gallery.flat(2), [1, 1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_hard_matrices_have_their_property(dtype):
    n = 20
    lu, _ = scipy.linalg.lu_factor(gallery.wilkinson_growth(n, dtype=dtype))
    assert abs(lu).max() == 2 ** (n - 1)

    K = gallery.kahan(60, dtype="f8")
    assert np.linalg.svd(K, compute_uv=False)[-1] < 1e-4 * abs(K.diagonal()).min()

    H = gallery.hilbert(6, dtype=dtype)
    assert np.linalg.cond(H.astype("c16")) == pytest.approx(1.495e7, rel=0.3)

    G = gallery.graded(n, decades=8, dtype=dtype)
    norms = np.linalg.norm(G, axis=1)
    assert 1e7 < norms[0] / norms[-1] < 1e9

    D = gallery.rank_deficient(15, 12, 5, dtype=dtype)
    assert np.linalg.matrix_rank(D) == 5
    np.testing.assert_array_equal(D, D.round())

    Z = gallery.zero_leading_block(6, dtype=dtype)
    np.testing.assert_array_equal(Z @ Z, np.eye(6))
    assert not Z[:3, :3].any()

    for A in (H, G, D, Z, gallery.kahan(5, dtype=dtype), gallery.wilkinson_growth(3, dtype=dtype)):
        assert A.dtype == np.dtype(dtype)


def test_hard_matrices_refuse_what_they_are_not():
    with pytest.raises(SpecError, match="even"):
        gallery.zero_leading_block(3)
    with pytest.raises(SpecError, match="rank"):
        gallery.rank_deficient(3, 3, 4)
    with pytest.raises(SpecError, match="dtype"):
        gallery.hilbert(3, dtype="i8")
    with pytest.raises(SpecError, match="step"):
        gallery.singular_at(3, 3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_hard_square_matrices_of_any_order(dtype):
    for make in gallery.HARD_SQUARE.values():
        for n in (1, 2, 7):
            A = make(n, dtype)
            assert A.shape == (n, n)
            assert A.dtype == np.dtype(dtype)
            assert np.isfinite(A).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_near_and_exactly_singular(dtype):
    eps = np.finfo(dtype).eps
    s = np.linalg.svd(gallery.near_singular(30, condition=1e3, dtype=dtype), compute_uv=False)
    np.testing.assert_allclose(s, [1] * 29 + [1e-3], rtol=1e3 * 100 * eps)

    lu = scipy.linalg.lapack.get_lapack_funcs(["getrf"], dtype=dtype)[0](gallery.singular_at(20, 12, dtype=dtype))
    assert lu[2] == 13
    assert np.flatnonzero(lu[0].diagonal() == 0).tolist() == [12]

    T = gallery.tiny_leading_block(20, dtype=dtype)
    assert abs(T[:10, :10]).max() < 10 * eps
    assert np.linalg.cond(T) < 1e5

    P = gallery.positive_definite(20, condition=100, dtype=dtype)
    np.testing.assert_array_equal(P, P.conj().T)
    np.testing.assert_allclose(np.linalg.eigvalsh(P)[[0, -1]], [0.01, 1], rtol=1e4 * eps)


@pytest.mark.parametrize("dtype", ["f8", "c8"])
def test_few_wide_rows_cost_no_more_than_they_are(dtype: str) -> None:
    """Neither time nor memory of the 64 rows that share their angles."""
    made = SpectrumMatrix((130, 400_000), gallery.power(40), dtype=np.dtype(dtype))
    made.rows(0, 1)
    tracemalloc.start()
    row = made.rows(70, 71)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 400_000 * 16
    np.testing.assert_array_equal(row, made.rows(66, 73)[4:5])
