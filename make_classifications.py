"""Mosaic and weights to a land-cover map; see lulc/cli/make_classifications.py."""

from lulc.cli.make_classifications import main

if __name__ == "__main__":
    raise SystemExit(main())
