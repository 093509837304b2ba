"""The controller: finds out where the databases are. Next on the path: ``main.py``."""
