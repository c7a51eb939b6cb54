"""Draws the demo and writes its manifest: python -m tools.demo.build FOLDER."""
