"""Training data: datasets of stacks, and batches by sampling, cropping, augmentation and masking.

Networks and optimizers are in `lulc.models` and `lulc.training`.
"""
