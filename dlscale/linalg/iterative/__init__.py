"""Iterative methods for linear systems and least squares: one file a method, on any linear operator."""
