"""Weights described for catalogues; see lulc/commands/export_model.py."""

from lulc.commands.export_model import main

raise SystemExit(main())
