"""Models: layers, activations, losses."""
