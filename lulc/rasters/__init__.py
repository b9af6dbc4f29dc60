"""Imagery as files hold it: opened, guarded, named, masked, scaled and aligned on one grid.

Labels and maps are read through the same sources, but what their values mean is not decided here.
"""
