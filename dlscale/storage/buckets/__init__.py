"""Results and checkpoints in object stores, where nothing is renamed and nothing is locked."""
