"""Training: what is chosen for the data, and what a run tells of itself while it trains."""
