"""What is measured again of videos that are there, by any method, and how outputs compare."""
