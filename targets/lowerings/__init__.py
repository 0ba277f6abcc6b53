"""One file per target; each lists its targets in ``TARGETS`` (see ``targets/registry.py``)."""
