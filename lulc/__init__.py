"""Land-cover maps from Sentinel-2 mosaics with a U-Net."""

__version__ = "0.1.0"
