"""Class numbers on a grid, the schemes that turn codes into classes, and the levels that group classes.

Geometry of polygons and points is read in `lulc.rasters.vectors`.
"""
