"""Search for a plan: what is asked of one (objective), what estimates it, what plans there are."""
