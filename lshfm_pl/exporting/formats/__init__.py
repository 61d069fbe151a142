"""The formats: one file each, which defines `FORMAT`."""
