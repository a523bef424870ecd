"""Polar decompositions: A = U P with U orthonormal and P Hermitian positive semidefinite."""
