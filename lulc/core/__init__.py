"""Plain data and files: schema, grid, windows, storage, documents, statistics, threads, memory.

Nothing here knows what a class, a network or a map is, and nothing here imports another package of `lulc`.
"""
