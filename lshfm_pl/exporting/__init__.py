"""Files of detectors for other programs, a file a format in `formats/`, and their check against the checkpoint."""
