"""A map in the formats of other programs; see lulc/commands/export_map.py."""

from lulc.commands.export_map import main

if __name__ == "__main__":
    raise SystemExit(main())
