"""Runs the same command line on a cluster."""
