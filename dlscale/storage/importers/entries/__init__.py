"""Sparse matrices that are given entry by entry: SVMlight's text, and tables of row, column and value."""
