"""Layer 0: what things are: programs, axes, the token dialect, facts, plans."""
