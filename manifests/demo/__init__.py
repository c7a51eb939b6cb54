"""Data of the bundled demo: a manifest and the four pictures that it moves. `tools/demo` draws them."""
