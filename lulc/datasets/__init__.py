"""Folders of ``.npy`` stacks with their manifest: the format that preprocessing writes and training reads.

How stacks are cut is in `lulc.preprocessing`; how crops are drawn is in `lulc.training.data`.
"""
