"""Ways to adapt a pretrained network, one file each: its settings in the plans, where it acts, its rate and its costs.

:class:`Adaptation` is what a new one subclasses; with its line here, plans, flags, planner and memory model know it.
The files import torch only where they touch a network, because commands and planner read the settings.
"""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Annotated

from pydantic import Field

from samunet.adaptations.adaptation import Adaptation
from samunet.adaptations.bottleneck import AdapterPlan
from samunet.adaptations.full import FullPlan
from samunet.adaptations.lora import LoraPlan

__all__ = ["ADAPTATIONS", "Adaptation", "AdaptationPlan", "AdapterPlan", "FullPlan", "LoraPlan"]

ADAPTATIONS: dict[str, type[Adaptation]] = {
    kind.model_fields["method"].default: kind for kind in (LoraPlan, AdapterPlan, FullPlan)
}
AdaptationPlan = Annotated[reduce(or_, ADAPTATIONS.values()), Field(discriminator="method")]
