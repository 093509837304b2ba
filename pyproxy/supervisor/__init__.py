"""The supervisor: binds the listeners, forks the worker, keeps it alive. Next: ``run.py``."""
