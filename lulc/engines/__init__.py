"""Networks as functions from windows to probabilities, on Keras, OpenVINO or onnxruntime.

The processing of probabilities is in `lulc.inference`.
"""
