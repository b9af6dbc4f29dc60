"""A map for other programs: styles, STAC items, NetCDF and Zarr."""
