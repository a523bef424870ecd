"""What one number or a few say of a matrix: norms, the condition, the rank, the trace."""
