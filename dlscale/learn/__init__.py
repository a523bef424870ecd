"""Models trained by gradient steps: pure mathematics on NumPy arrays, one process, no MPI, no Dask, no files.

Everything that a rank computes from its own rows is a sum over rows, so that the caller adds up what the ranks return and
every rank takes the same step.
"""
