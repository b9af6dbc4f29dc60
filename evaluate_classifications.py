"""A map and its reference to tables and pictures; see lulc/commands/evaluate_classifications.py."""

from lulc.commands.evaluate_classifications import main

raise SystemExit(main())
