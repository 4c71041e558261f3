"""Remedies that messages print do what is missing."""

import pytest

from samunet.commands.samunet import main
from samunet.errors import SamunetError
from samunet.plans import plans_called


def test_a_misspelt_command_with_arguments_is_named(capsys):
    assert main(["trian", "021", "2d", "0", "--time_budget", "30s"]) == 2
    err = capsys.readouterr().err
    assert "there is no command trian" in err
    assert "did you mean samunet train?" in err


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("samunetPlans", "samunet_plan_and_preprocess -d Dataset021_A"),
        ("otherPlans", "samunet_plan_and_preprocess -d Dataset021_A -overwrite_plans_name otherPlans"),
    ],
)
def test_plans_that_are_missing_are_made_under_their_name(tmp_path, name, remedy):
    with pytest.raises(SamunetError) as raised:
        plans_called(name, tmp_path / "Dataset021_A")
    assert raised.value.hint == remedy
