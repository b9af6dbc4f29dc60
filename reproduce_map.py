"""A map made again from its tags and compared; see lulc/cli/reproduce_map.py."""

from lulc.cli.reproduce_map import main

if __name__ == "__main__":
    raise SystemExit(main())
