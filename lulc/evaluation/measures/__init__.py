"""Metrics, results, estimated areas, regions and label errors; numbers only.

Nothing here draws or writes a page.
"""
