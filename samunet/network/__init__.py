"""The network: SAM's image encoder at any input size, its mask decoder as a semantic head, and the adapters.

Nothing here knows about datasets or files of a training run; :func:`samunet.network.model.build_model` builds what a
:class:`samunet.plans.NetworkPlan` asks for.
"""
