"""The version, alone, so that anything may ask for it."""

__version__ = "0.2.0"
