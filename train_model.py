""".npy stacks to weights; see lulc/commands/train_model.py."""

from lulc.commands.train_model import main

raise SystemExit(main())
