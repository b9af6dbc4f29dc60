"""``make_mosaic.py``: scenes of a region found, cleaned of clouds and composed into a mosaic.

What reads a scene lies in `lulc.rasters`; what trains on a mosaic, or classifies it, lies above.
"""
