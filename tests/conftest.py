"""Loads the fixtures: one `fix_*.py` a concern, found by name.

Not here: any fixture. Next on the path: `fix_postgres.py`.
"""

from __future__ import annotations

import os
from pathlib import Path

from pyproxy.demo.surroundings import forget_foreign_settings

pytest_plugins = [f"tests.{file.stem}" for file in sorted(Path(__file__).parent.glob("fix_*.py"))]

# Whose machine it is may have PGHOSTADDR or PGSERVICE set: tests would write to that server.
forget_foreign_settings(os.environ)
