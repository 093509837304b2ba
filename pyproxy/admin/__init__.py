"""The admin process: answers the read verbs. Next on the path: ``main.py``."""
