"""Runs: their folders, what they leave there, and how they are started and stopped."""
