"""One published method a file; see method.py for the interface."""
