"""Mosaic and weights to a land-cover map; see lulc/commands/make_classifications.py."""

from lulc.commands.make_classifications import main

raise SystemExit(main())
