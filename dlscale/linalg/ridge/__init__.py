"""Ridge regression: a path of penalties from one factorization."""
