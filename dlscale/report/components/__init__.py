"""What principal components show: rows in their plane, and the columns that make them, by name."""
