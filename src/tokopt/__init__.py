"""tokopt: a compiler that makes exported vision-language models need far fewer visual tokens."""

__version__ = "0.1.0"
