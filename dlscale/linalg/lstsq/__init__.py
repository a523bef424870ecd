"""Least squares of minimum norm."""
