"""Land-cover maps from Sentinel-2 mosaics: preprocessing, training, classification, accuracy."""

from lulc.core.version import __version__ as __version__
