"""A new adaptation is one file and its name in the registry: that of documentation/guide/write_a_recipe.md."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
USE = """
from dataclasses import replace

import torch

from samunet.adaptations import ADAPTATIONS, FullPlan, LoraPlan
from samunet.commands import build_parser
from samunet.commands.flags import ADAPTATION
from samunet.encoders import ENCODERS
from samunet.errors import UsageError
from samunet.inference.logits import SlicePredictor
from samunet.network.model import build_model
from samunet.planning import resources, rules
from samunet.plans import NetworkPlan
from samunet.preprocessing.grid import SliceGrid
from samunet.training.recipes import Recipe

parser = build_parser("samunet_plan_experiment")
arguments = parser.parse_args(["-d", "27", "-neighbour_mean_slices", "5"])
adaptation = ADAPTATION.chosen(vars(arguments))
assert adaptation == ADAPTATIONS["neighbour_mean"](slices=5)
facts = ENCODERS["vit_b"]
assert rules.adaptation(facts, adaptation)[0] == adaptation
try:
    rules.adaptation(facts, ADAPTATIONS["neighbour_mean"](slices=4))
except UsageError as error:
    assert "must be odd" in str(error)
else:
    raise AssertionError("4 slices were taken")
assert rules.learning_rate(facts, adaptation, batch=24)[0] == 1e-3
estimates = [resources.estimate(facts, [448, 448], one).image_bytes for one in (adaptation, LoraPlan())]
assert estimates[0] > estimates[1]

ENCODERS["vit_b"] = replace(facts, width=48, depth=4, heads=3, global_blocks=(1,), native_size=256)


def network_of(chosen):
    plan = NetworkPlan(
        encoder="vit_b", input_shape=[64, 64], spacing=1.0, head="sam", adaptation=chosen, input_channels="repeat",
        batch_size=10, accumulation=1, learning_rate=1e-3, weight_decay=0.1, training_images={"cpu": 1, "gpu": 1},
        memory_bytes=0, training_gflops=0.0,
    )
    assert NetworkPlan.model_validate_json(plan.model_dump_json()) == plan
    return plan, build_model(plan, num_outputs=3, num_channels=1, unit_range=[False]).eval()


torch.manual_seed(0)
_, plain = network_of(FullPlan())
plan, model = network_of(adaptation)
assert Recipe.slices_for(plan) == 5
model.load_state_dict(plain.state_dict(), strict=False)
images = torch.randn(7, 1, 64, 64)
with torch.inference_mode():
    assert torch.equal(model(images[:5]), plain(images[:5]))  # as the pretrained network
    for name, parameter in model.named_parameters():
        if ".share" in name:
            parameter.fill_(0.5)
    settings = {"neighbours": False, "device": torch.device("cpu"), "dtype": None}
    predictor = SlicePredictor([model], slab=plan.adaptation.slab, **settings)
    grid = SliceGrid.of((64, 64), [1.0, 1.0], 1.0, [64, 64])
    logits = dict(predictor.logits(images.transpose(0, 1).numpy(), grid, (64, 64)))
    for z, around in {0: [0, 0, 0, 1, 2], 3: [1, 2, 3, 4, 5], 6: [4, 5, 6, 6, 6]}.items():
        assert torch.allclose(logits[z], model(images[around])[2], atol=1e-4)
        assert not torch.allclose(logits[z], plain(images[z : z + 1])[0], atol=1e-3)
"""


def test_one_file_and_its_name(tmp_path):
    package = tmp_path / "samunet"
    package.mkdir()
    for path in (ROOT / "samunet").iterdir():
        if path.name not in ("adaptations", "__pycache__"):
            (package / path.name).symlink_to(path)
    shutil.copytree(ROOT / "samunet" / "adaptations", package / "adaptations")
    page = (ROOT / "documentation" / "guide" / "write_a_recipe.md").read_text(encoding="utf-8")
    name, code = re.search(r"```python\n# samunet/adaptations/(\w+\.py)\n(.*?)```", page, re.DOTALL).groups()
    (package / "adaptations" / name).write_text(code, encoding="utf-8")
    registry = package / "adaptations" / "__init__.py"
    text = registry.read_text(encoding="utf-8")
    changed = text.replace("FullPlan)", "FullPlan, NeighbourMeanPlan)").replace(
        "from samunet.adaptations.lora",
        "from samunet.adaptations.neighbour_mean import NeighbourMeanPlan\nfrom samunet.adaptations.lora",
    )
    registry.write_text(changed, encoding="utf-8")
    (tmp_path / "use.py").write_text(USE, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    result = subprocess.run([sys.executable, "use.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
