"""Lightning callbacks: checkpoints, logs, curves, pictures, and what a run shows while it trains."""
