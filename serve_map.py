"""A map in the browser of this machine; see lulc/cli/serve_map.py."""

from lulc.cli.serve_map import main

if __name__ == "__main__":
    raise SystemExit(main())
