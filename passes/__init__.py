"""Layer 1: what is done to programs: the pass manager, rewrites, methods, validation."""
