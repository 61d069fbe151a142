"""Bodies of detectors, one file a family, under a feature pyramid or alone."""
