"""Layer 2: one file per command; composes everything below."""
