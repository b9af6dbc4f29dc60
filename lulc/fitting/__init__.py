"""The training loop, what changes weights, and what of a run is kept."""
