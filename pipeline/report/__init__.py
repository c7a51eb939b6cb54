"""The pages that show what a run made, and what it looked at inside."""
