"""The output of a run: every file that reads or writes it. docs/output-format.md describes format and protocol."""
