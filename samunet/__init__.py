"""samunet: self-configuring medical image segmentation with an adapted Segment Anything Model.

The rooms are described in ``documentation/reference/architecture.md``; each imports only rooms below it.
The Python API is in :mod:`samunet.api`.
"""

__version__ = "0.1.0"
