"""From rasters and labels to a folder of stacks: survey, tile plan, split, tiling, journal.

The format of the folder is in `lulc.datasets`.
"""
