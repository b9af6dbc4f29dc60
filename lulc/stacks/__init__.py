"""Folders of .npy stacks: which places become stacks, how they are cut, what is written down of them."""
