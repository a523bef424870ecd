"""Names of rows and columns, which travel with a matrix into what is computed of it."""
