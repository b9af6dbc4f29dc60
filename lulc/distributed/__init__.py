"""Dask clusters: started or found, and tasks run on their workers.

What a task computes lives with the stage that sends it.
"""
