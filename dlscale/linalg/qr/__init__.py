"""QR: A = Q R."""
