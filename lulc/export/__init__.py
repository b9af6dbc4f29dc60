"""A map or model in other formats: CF NetCDF and Zarr, STAC, styles for QGIS and GeoServer.

Pixels are copied, never computed anew.
"""
