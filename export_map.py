"""A map in the formats of other programs; see lulc/cli/export_map.py."""

from lulc.cli.export_map import main

if __name__ == "__main__":
    raise SystemExit(main())
