"""Networks of other toolkits; see lulc/cli/import_model.py."""

from lulc.cli.import_model import main

if __name__ == "__main__":
    raise SystemExit(main())
