"""Weights described for catalogues; see lulc/commands/export_model.py."""

from lulc.commands.export_model import main

if __name__ == "__main__":
    raise SystemExit(main())
