"""Kernel ridge regression: systems with a kernel matrix that is never stored."""
