"""Generation: what a trained model makes, in memory and as files."""
