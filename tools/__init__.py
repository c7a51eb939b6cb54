"""What makes the data in the package: the embedded checkpoint and the demo. Not in the wheel."""
