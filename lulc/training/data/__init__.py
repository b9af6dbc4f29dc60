"""Batches for training: stacks of several folders, sampling, crops, augmentation and masking.

Nothing here changes a weight.
"""
