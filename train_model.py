""".npy stacks to weights; see lulc/commands/train_model.py."""

from lulc.commands.train_model import main

if __name__ == "__main__":
    raise SystemExit(main())
