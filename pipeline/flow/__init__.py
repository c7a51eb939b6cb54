"""The stages of a sample, and Ray: no other room of the pipeline imports it."""
