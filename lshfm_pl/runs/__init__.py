"""Runs: their folders, the files that they write there, and how they are started, stopped and resumed."""
