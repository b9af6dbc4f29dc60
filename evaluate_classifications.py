from lulc.commands.evaluate_classifications import main

raise SystemExit(main())
