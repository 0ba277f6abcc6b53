"""The masked oracle: the original graph, run with dropped rows marked instead of removed."""
