"""A map and its reference to tables and pictures; see lulc/cli/evaluate_classifications.py."""

from lulc.cli.evaluate_classifications import main

if __name__ == "__main__":
    raise SystemExit(main())
