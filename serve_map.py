"""A map in the browser of this machine; see lulc/commands/serve_map.py."""

from lulc.commands.serve_map import main

raise SystemExit(main())
