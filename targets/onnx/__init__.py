"""From an exported program to an ONNX model: translations, clean-up, saving."""
