"""Boxes and feature maps drawn on pictures."""
