"""``pyproxy demo``: a database, a storm of clients and the proxy between them, on this machine.

Next on the path: ``run.py``.
"""
