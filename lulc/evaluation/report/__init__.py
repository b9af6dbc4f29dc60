"""Pages and pictures for people: figures, sections, views and the viewer of a report.

Nothing here computes a metric.
"""
