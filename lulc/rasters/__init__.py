"""One raster, or many on one grid: opened with care, layers by name, in physical units."""
