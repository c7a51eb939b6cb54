"""What a person types and sees: the commands, their options, progress and summaries."""
