"""Matrices, results and checkpoints at rest."""
