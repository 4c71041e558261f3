"""From an image in its own geometry to stored slices, and the grid between stored slices and network input.

Training reads what :mod:`samunet.preprocessing.run` stored; prediction runs the same steps in memory.
"""
