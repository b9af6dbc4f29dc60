"""Weights described for catalogues; see lulc/cli/export_model.py."""

from lulc.cli.export_model import main

if __name__ == "__main__":
    raise SystemExit(main())
