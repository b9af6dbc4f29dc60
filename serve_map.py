"""A map in the browser of this machine; see lulc/commands/serve_map.py."""

from lulc.commands.serve_map import main

if __name__ == "__main__":
    raise SystemExit(main())
