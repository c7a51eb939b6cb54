"""One command for one lease of a GPU: see `__main__.py`."""
