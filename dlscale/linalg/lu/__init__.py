"""LU with pivoting: P A = L U."""
