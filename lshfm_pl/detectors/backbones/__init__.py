"""Backbones of detectors, one file per family, with or without a feature pyramid."""
