"""The configuration: read, checked, compiled.

``load.py`` is the way in. Next on the path: ``load.py``.
"""
