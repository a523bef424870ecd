"""One algorithm a file, each a short piece of mathematics on a pattern."""
