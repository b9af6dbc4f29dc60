"""Training data: datasets of stacks, and batches by sampling, cropping, augmentation and masking."""
