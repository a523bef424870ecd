"""What passes do with a block of rows."""
