"""Networks of other toolkits as models of this one.

The graph is checked by `lulc.models.onnx_file` and run by `lulc.engines.graphs`.
"""
