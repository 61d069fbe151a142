"""Lightning callbacks: checkpoints, logs, curves, pictures, and the display of a run while it trains."""
