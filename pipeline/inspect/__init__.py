"""What looks at an output: status, verify, replay, contact sheet."""
