"""Layer 1: lowerings, artifacts and their runtimes."""
