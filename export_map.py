"""A map in the formats of other programs; see lulc/commands/export_map.py."""

from lulc.commands.export_map import main

raise SystemExit(main())
