"""`python -m egic`: the same as the console script `egic`."""

from egic.cli.main import main

raise SystemExit(main())
