"""Columns of tables: which of them are numbers, and what their missing values become."""
