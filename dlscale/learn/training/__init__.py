"""The loop of a training, and what it reads, keeps and says."""
