"""From stacks to weights: the training loop, losses, optimizer, checkpoints, devices, cross-validation.

Batches and crops are in `lulc.training.data`, networks in `lulc.models`.
"""
