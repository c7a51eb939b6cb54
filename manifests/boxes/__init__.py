"""Where a sample's boxes come from: one file per proposer."""
