"""What is taken out of an output: which samples, in which format."""
