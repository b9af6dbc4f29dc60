"""The map on disk: encoded blocks, GeoTIFF parts and assembly, and the reader of finished maps.

What is derived from a map is in `lulc.export` and `lulc.evaluation`.
"""
