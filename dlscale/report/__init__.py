"""Figures and HTML from the plain data of a finished job."""
