"""Bands, indices and labels to .npy stacks; see lulc/commands/preprocess.py."""

from lulc.commands.preprocess import main

if __name__ == "__main__":
    raise SystemExit(main())
