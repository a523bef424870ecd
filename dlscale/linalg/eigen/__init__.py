"""Eigenvalues of symmetric and Hermitian matrices, and the proof that none was missed."""
