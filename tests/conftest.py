"""Loads the fixtures: one `fix_*.py` a concern, found by name.

`--io` says which driver the proxies of the tests use, `--part N` runs about every Nth test (the
same ones every time): a second run with the other driver need not be whole. Not here: any fixture.
Next on the path: `fix_postgres.py`.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest

from pyproxy.demo.surroundings import forget_foreign_settings

pytest_plugins = [f"tests.{file.stem}" for file in sorted(Path(__file__).parent.glob("fix_*.py"))]

# Whose machine it is may have PGHOSTADDR or PGSERVICE set: tests would write to that server.
forget_foreign_settings(os.environ)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the two options."""
    parser.addoption("--io", choices=["auto", "epoll", "io_uring"], default="auto")
    parser.addoption("--part", type=int, default=1)


def pytest_configure(config: pytest.Config) -> None:
    """Tell the fixtures which driver is wanted; they start other programs, too."""
    os.environ["PYPROXY_TEST_IO"] = config.getoption("--io")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep about one test in `--part`, chosen by its name."""
    part = config.getoption("--part")
    kept = [item for item in items if zlib.crc32(item.nodeid.encode()) % part == 0]
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept
