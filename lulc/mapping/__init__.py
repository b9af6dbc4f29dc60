"""A mosaic to the parts of a map, and the parts to files."""
