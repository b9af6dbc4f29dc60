"""Bands, indices and labels to .npy stacks; see lulc/cli/preprocess.py."""

from lulc.cli.preprocess import main

if __name__ == "__main__":
    raise SystemExit(main())
