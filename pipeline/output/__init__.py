"""The commit protocol: everything that reads or writes an output. docs/output-format.md describes it."""
