"""Sparse matrices: three arrays at rest, read by rows."""
