"""Faults in real runs: no row is lost, none is committed twice, and no innocent row is quarantined."""
