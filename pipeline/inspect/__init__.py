"""Commands that look at an output: status, verify, replay, sheet. Only verify changes one, and only to repair it."""
