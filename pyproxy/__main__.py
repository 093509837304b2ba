"""Makes ``python -m pyproxy`` the same as the ``pyproxy`` command. Next on the path: ``cli.py``."""

from pyproxy.cli import main

if __name__ == "__main__":
    main()
