"""Faults put into real runs: nothing is lost, nothing is made twice, and nobody innocent is blamed."""
