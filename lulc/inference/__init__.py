"""From a mosaic and weights to a map: plan, sliding window, workers, journal, outputs, reproduction.

The GeoTIFF format is in `lulc.maps`; the network as a function is in `lulc.engines`.
"""
