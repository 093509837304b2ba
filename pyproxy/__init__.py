"""pyproxy: a PostgreSQL connection proxy whose data path is Rust and whose decisions are Python.

This package is the Python side: configuration, command line, supervisor and workers. It is not on
the path of a query; that is the extension ``pyproxy._core``. Next on the path: ``cli.py``.
"""
