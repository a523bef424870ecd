"""Cholesky: A = L L^H."""
