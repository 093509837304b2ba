"""The verbs that talk to a running service. Next on the path: ``service.py``."""
