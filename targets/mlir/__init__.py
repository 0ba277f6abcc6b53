"""MLIR of a program: what torch-mlir imports, its text, and IREE to run that text."""
