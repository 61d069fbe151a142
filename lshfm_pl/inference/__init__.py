"""Detectors loaded with their data, and applied to pictures."""
