"""Products of two matrices at rest."""
