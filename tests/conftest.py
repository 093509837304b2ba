"""Loads the fixtures: one `fix_*.py` a concern, found by name.

Not here: any fixture. Next on the path: `fix_postgres.py`.
"""

from __future__ import annotations

from pathlib import Path

pytest_plugins = [f"tests.{file.stem}" for file in sorted(Path(__file__).parent.glob("fix_*.py"))]
