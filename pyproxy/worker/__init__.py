"""The worker: Python around one engine thread. Next on the path: ``main.py``."""
