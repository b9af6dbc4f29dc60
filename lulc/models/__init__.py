"""Networks and their files: architecture, weights, model card, calibration, out-of-distribution score.

How a network is trained is in `lulc.training`; how it is run fast is in `lulc.engines`.
"""
