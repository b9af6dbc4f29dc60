"""Run the demonstration: ``python -m lulc.demo``."""

from lulc.demo.demonstration import main

if __name__ == "__main__":
    raise SystemExit(main())
