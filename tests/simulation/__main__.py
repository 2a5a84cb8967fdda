"""`python -m tests.simulation`: see `tests.simulation.many`."""

from __future__ import annotations

import sys

from tests.simulation.many import main

sys.exit(main())
