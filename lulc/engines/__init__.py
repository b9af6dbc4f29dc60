"""A trained network as a plain function from windows to probabilities, on Keras or OpenVINO.

What is done with probabilities is in `lulc.inference`.
"""
