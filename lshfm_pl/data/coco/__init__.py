"""Data in COCO's JSON format."""
