"""How far a map can be believed: calibrated activations, pixels and mosaics unlike the training."""
