"""Distil object detectors by mimicking the teacher's features."""

__version__ = "0.1.0"
