"""Square systems: solutions, inverses, determinants."""
