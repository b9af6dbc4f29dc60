"""A mosaic of a region and some dates from satellite scenes; see lulc/cli/make_mosaic.py."""

from lulc.cli.make_mosaic import main

if __name__ == "__main__":
    raise SystemExit(main())
