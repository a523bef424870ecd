"""Factorizations by panels, and by panels in row blocks."""
