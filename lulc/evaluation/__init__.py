"""Evaluation of maps: `evaluate` measures and publishes, `server` shows a map in a browser.

Counts and metrics are in `lulc.evaluation.measures`, pages and pictures in `lulc.evaluation.report`.
"""
