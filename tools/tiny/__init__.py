"""Trains the embedded checkpoint: python -m tools.tiny --help."""
