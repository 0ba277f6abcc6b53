"""One format of a compressed cache a file; see format.py for the interface."""
