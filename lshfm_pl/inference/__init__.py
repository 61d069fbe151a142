"""Loading a detector with its data, and running it on pictures."""
