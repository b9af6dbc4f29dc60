""".npy stacks to weights; see lulc/cli/train_model.py."""

from lulc.cli.train_model import main

if __name__ == "__main__":
    raise SystemExit(main())
