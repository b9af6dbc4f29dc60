"""The demonstration (``python -m lulc.demo``) and the simulated scene that it uses.

The simulator also serves tests, notebooks and the documentation; its imagery is always called simulated.
"""
