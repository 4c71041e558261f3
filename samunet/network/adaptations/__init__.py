"""Ways to adapt a pretrained network, one module each: where it acts, its learning rate, and what it costs.

:class:`Adaptation` is what a new one subclasses. Its settings are a class of :mod:`samunet.plans`.
"""

from __future__ import annotations

from samunet.network.adaptations.adaptation import Adaptation
from samunet.network.adaptations.bottleneck import BottleneckAdapters
from samunet.network.adaptations.full import Full
from samunet.network.adaptations.lora import Lora
from samunet.plans import AdapterPlan, LoraPlan, NetworkPlan

__all__ = ["ADAPTATIONS", "Adaptation", "adaptation_settings"]

ADAPTATIONS: dict[str, Adaptation] = {kind.name: kind for kind in (Lora(), BottleneckAdapters(), Full())}


def adaptation_settings(plan: NetworkPlan) -> LoraPlan | AdapterPlan | None:
    """The settings of a network's adaptation; None where there is nothing to set."""
    return getattr(plan, plan.adaptation, None)
