"""The checkpoint that is inside the package: SVD's architecture at the size of a test."""
