"""Pictures with boxes, and maps of how well features agree."""
