"""Sparse decode: in some layers a token attends to the pages that an earlier layer chose."""
