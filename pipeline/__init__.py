"""Running a manifest to committed results: the whole dataflow is in run.py."""
