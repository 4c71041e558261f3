"""Plans files: what is written is read, what is wrong is named, what is inherited is resolved."""

import json

import pytest

from samunet.adaptations import AdapterPlan, FullPlan, LoraPlan
from samunet.errors import SamunetError, UsageError
from samunet.plans import (
    ConfigurationPlan,
    IntensityStatistics,
    NetworkPlan,
    Plans,
    check_plans_name,
    fingerprint_of,
    read_plans,
)

TINY = {"encoder": "vit_t", "checkpoint_blocks": True}


def make_network(**changes):
    values = {
        "encoder": "vit_b", "input_shape": [1024, 720], "spacing": 0.125, "head": "sam", "adaptation": LoraPlan(),
        "input_channels": "neighbours", "batch_size": 1, "accumulation": 12,
        "learning_rate": 3.5e-3, "weight_decay": 0.1, "training_images": {"cpu": 16000, "gpu": 48000},
        "memory_bytes": 7_000_000_000, "training_gflops": 1.5, "why": {"input_shape": "because"},
    }  # fmt: skip
    return NetworkPlan(**{**values, **changes})


def make_plans(**configurations):
    configuration = ConfigurationPlan(
        data_identifier="samunetPlans_2d", spacing=[0.7, 1.0], median_shape=[36, 50, 35], normalization=["zscore"],
        use_mask_for_norm=[False], mirror_axes=[0, 1], foreground_share=0.33, networks={
            "vit_b": make_network(),
            "small": make_network(encoder="small", adaptation=FullPlan(), input_shape=[112, 80]),
        },
    )  # fmt: skip
    return Plans(
        dataset_name="Dataset027_ACDC", plans_name="samunetPlans", samunet_version="0.1", image_reader="SimpleITKIO",
        physical_spacing=True, original_median_spacing=[5.0, 0.7, 1 / 3], original_median_shape=[10, 50, 35],
        transpose_forward=[2, 0, 1],
        foreground_intensity_properties_per_channel={"0": IntensityStatistics(
    mean=0.1, median=0.2, std=0.3, min=-1e9, max=1e9, percentile_00_5=0.6, percentile_99_5=0.7
)},
        gpu_memory_target_gb=8.0, encoder="auto",
        configurations={"2d": configuration.model_dump(), **configurations}, why={"transpose_forward": "coarsest"},
    )  # fmt: skip


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "samunetPlans.json"
    make_plans().write(path)
    return path


def edit(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_round_trip(path):
    assert read_plans(path) == make_plans()
    configuration = read_plans(path).configuration("2d")
    assert configuration.networks["vit_b"] == make_network()
    assert configuration.networks["small"].adaptation == FullPlan()
    assert isinstance(configuration, ConfigurationPlan)


def test_round_trip_without_physical_spacing(path):
    edit(path, lambda data: data.update(physical_spacing=False))
    edit(path, lambda data: data["configurations"]["2d"].update(spacing=None))
    edit(path, lambda data: network(data).update(spacing=None))
    edit(path, lambda data: data["configurations"]["2d"]["networks"]["small"].update(spacing=None))
    configuration = read_plans(path).configuration("2d")
    assert configuration.spacing is None
    assert configuration.networks["vit_b"].spacing is None


def test_plans_from_before_checkpointing_go_on_loading(path):
    assert network(json.loads(path.read_text())).pop("checkpoint_blocks") is False
    edit(path, lambda data: network(data).pop("checkpoint_blocks"))
    assert read_plans(path).configuration("2d").networks["vit_b"] == make_network()
    edit(path, lambda data: network(data).update(checkpoint_blocks=True))
    assert read_plans(path).configuration("2d").networks["vit_b"] == make_network(checkpoint_blocks=True)


def test_plans_from_before_muon_mean_adamw(path):
    edit(path, lambda data: [network.pop("optimizer") for network in two_d(data)["networks"].values()])
    assert {network.optimizer for network in read_plans(path).configuration("2d").networks.values()} == {"adamw"}


def test_a_whole_number_may_stand_for_a_fraction(path):
    edit(path, lambda data: data.update(gpu_memory_target_gb=8))
    assert read_plans(path).gpu_memory_target_gb == 8.0


def two_d(data):
    return data["configurations"]["2d"]


def network(data):
    return two_d(data)["networks"]["vit_b"]


def without_spacing(data):
    data["physical_spacing"] = False
    two_d(data)["spacing"] = None
    return two_d(data)


def test_plans_from_before_planes_slice_along_one_axis(path):
    edit(path, lambda data: two_d(data).pop("planes"))
    assert read_plans(path).configuration("2d").planes == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda data: data.update(encoder_name="x"), r"encoder_name: .*no such key"),
        (lambda data: data.update(encoder=5), r"encoder: .*string.*got 5"),
        (lambda data: data.pop("transpose_forward"), "transpose_forward: .*required"),
        (lambda data: data.update(transpose_forward=["2", 0, 1]), r"transpose_forward\.0: .*integer"),
        (lambda data: data.update(physical_spacing="yes"), "physical_spacing: .*boolean"),
        (lambda data: data["foreground_intensity_properties_per_channel"]["0"].pop("std"), "0.std: .*required"),
        (lambda data: data.update(configurations={"2d": 5}), "configurations.2d: "),
        (lambda data: data["configurations"]["2d"].update(batch=2), r"configuration '2d'.*: batch: .*no such key"),
        (lambda data: data["configurations"]["2d"].update(median_shape=[1.5, 2, 3]), r"median_shape\.0: .*integer"),
        (lambda data: data["configurations"]["2d"].update(normalization="zscore"), "normalization: .*array"),
        (lambda data: data["configurations"]["2d"].update(normalization=["zscroe"]), "normalization"),
        (lambda data: network(data).update(batch_size="4"), r"networks\.vit_b\.batch_size: .*integer.*got '4'"),
        (lambda data: network(data).update(batchsize=4), r"networks\.vit_b\.batchsize: .*no such key"),
        (
            lambda data: network(data).update(adaptation="vpt"),
            "method: must be one of 'lora', 'adapter', 'full', got 'vpt'",
        ),
        (
            lambda data: network(data)["adaptation"].update(targets=["q", "w"]),
            r"vit_b\.adaptation\.targets\.1: ",
        ),
        (lambda data: network(data).update(input_shape=[1_000_000, 1_000_000]), r"input_shape\.0: .*less than .* 4096"),
        (lambda data: network(data).update(batch_size=10**6), "batch_size: .*less than .* 100000"),
        (lambda data: network(data).update(learning_rate=1e9), "learning_rate: .*less than .* 100"),
        (lambda data: network(data)["adaptation"].update(rank=5000), "adaptation.rank: .*less than .* 1024"),
        (lambda data: data.update(configurations={str(index): {} for index in range(101)}), "at most 100 items"),
        (
            lambda data: network(data)["adaptation"].update(dropout=0.1),
            r"networks\.vit_b\.adaptation\.dropout: .*no such key",
        ),
        (lambda data: data.update(transpose_forward=[0, 0, 1]), r"transpose_forward .*once, got \[0, 0, 1\]"),
        (lambda data: data.update(transpose_forward=[0, 1]), "transpose_forward: .*at least 3"),
        (lambda data: data.update(transpose_forward=[1, 2, 3]), r"transpose_forward\.2: .*less than or equal to 2"),
        (lambda data: data.update(original_median_spacing=[5, 1, 0]), r"original_median_spacing\.2: .*greater than 0"),
        (lambda data: data.update(physical_spacing=False), "spacing must be .*null without"),
        (lambda data: data["configurations"]["2d"].update(mirror_axes=[2]), r"mirror_axes\.0: .*equal to 1"),
        (
            lambda data: data["configurations"]["2d"].update(mirror_axes=[1, 1]),
            r"mirror_axes must not repeat.*\[1, 1\]",
        ),
        (lambda data: two_d(data).update(planes=[]), "planes: .*at least 1"),
        (lambda data: two_d(data).update(planes=[[0, 1]]), r"planes\.0: .*at least 3"),
        (lambda data: two_d(data).update(planes=[[0, 1, 3]]), r"planes\.0\.2: .*equal to 2"),
        (lambda data: two_d(data).update(planes=[[0, 1, 2], [1, 1, 2]]), "planes must each hold the axes"),
        (lambda data: two_d(data).update(planes=[[1, 0, 2], [0, 1, 2]]), "planes must begin with"),
        (lambda data: two_d(data).update(planes=[[0, 1, 2], [0, 2, 1]]), "planes must each hold .* begin with another"),
        (
            lambda data: without_spacing(data).update(planes=[[0, 1, 2], [1, 0, 2]]),
            "planes must be .* without physical",
        ),
        (
            lambda data: (network(data).update(recipe="samed"), two_d(data).update(planes=[[0, 1, 2], [1, 0, 2]])),
            "planes must be .* recipe samed",
        ),
        (lambda data: data["configurations"]["2d"].update(foreground_share=1.5), "foreground_share: .*equal to 1"),
        (lambda data: data["configurations"]["2d"].update(spacing=[-1.0, 1.0]), r"spacing\.0: .*greater than 0"),
        (lambda data: data["configurations"]["2d"].update(spacing=None), "spacing must be two numbers"),
        (lambda data: data["configurations"]["2d"].update(use_mask_for_norm=[]), "use_mask_for_norm must have.*1"),
        (
            lambda data: data["configurations"]["2d"].update(normalization=["ct"] * 2, use_mask_for_norm=[False] * 2),
            "normalization must have one entry per channel, 1",
        ),
        (
            lambda data: data["configurations"]["2d"].update(data_identifier="../raw"),
            "data_identifier must be the name",
        ),
        (lambda data: two_d(data).update(networks={}), "networks: .*at least 1"),
        (lambda data: network(data).update(encoder="vit_x"), r"networks\.vit_b\.encoder must be one of vit_b.*'vit_x'"),
        (lambda data: network(data).update(encoder="small"), r"networks\.vit_b\.encoder must be 'vit_b'.*'small'"),
        (
            lambda data: network(data).update(input_shape=[1000, 720]),
            r"networks\.vit_b\.input_shape must be multiples.* 16",
        ),
        (lambda data: network(data).update(input_shape=[1024]), r"networks\.vit_b\.input_shape: .*at least 2"),
        (lambda data: network(data).update(input_shape=[0, 16]), r"networks\.vit_b\.input_shape\.0: .*equal to 1"),
        (lambda data: network(data).update(spacing=-0.1), r"networks\.vit_b\.spacing: .*greater than 0"),
        (lambda data: network(data).update(spacing=None), r"networks\.vit_b\.spacing must be a number"),
        (lambda data: network(data).update(batch_size=0), r"networks\.vit_b\.batch_size: .*equal to 1"),
        (lambda data: network(data).update(accumulation=-1), r"networks\.vit_b\.accumulation: .*equal to 1"),
        (lambda data: network(data).update(learning_rate=0), r"networks\.vit_b\.learning_rate: .*greater than 0"),
        (lambda data: network(data).update(weight_decay=-1), r"networks\.vit_b\.weight_decay: .*equal to 0"),
        (lambda data: network(data)["adaptation"].update(rank=0), r"networks\.vit_b\.adaptation\.rank: .*equal to 1"),
        (
            lambda data: network(data)["adaptation"].update(targets=[]),
            r"vit_b\.adaptation\.targets: .*at least 1",
        ),
        (
            lambda data: network(data)["adaptation"].pop("method"),
            r"vit_b\.adaptation\.method: must be one of",
        ),
        (
            lambda data: network(data)["adaptation"].update(method="full"),
            r"vit_b\.adaptation\.\w+: there is no",
        ),
        (lambda data: network(data).update(adaptation="full", lora={}), r"networks\.vit_b\.lora: there is no such key"),
        (lambda data: network(data).update(optimizer="sgd"), r"networks\.vit_b\.optimizer: .*'adamw' or 'muon'"),
        (lambda data: network(data).update(checkpoint_blocks=1), r"networks\.vit_b\.checkpoint_blocks: .*boolean"),
        (
            lambda data: two_d(data).update(networks={"vit_t": network(data) | TINY}),
            r"networks\.vit_t\.checkpoint_blocks must be false for vit_t",
        ),
    ],
)
def test_what_is_wrong_is_named(path, change, expected):
    edit(path, change)
    with pytest.raises(SamunetError, match=expected) as caught:
        read_plans(path)
    assert "api.plan_experiment" in caught.value.hint
    assert "samunetPlans" in caught.value.message


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(SamunetError, match=r"none\.json does not exist"):
        read_plans(tmp_path / "none.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(SamunetError, match=r"list\.json: the whole file"):
        read_plans(tmp_path / "list.json")


def test_inheritance_changes_only_what_is_given():
    plans = make_plans(
        **{
            "2d_896": {"inherits_from": "2d", "networks": {"vit_b": {"input_shape": [896, 640], "spacing": 0.14}}},
            "2d_bs4": {"inherits_from": "2d_896", "mirror_axes": [], "networks": {"vit_b": {"batch_size": 4}}},
        }
    )
    base, middle, last = (plans.configuration(name) for name in ("2d", "2d_896", "2d_bs4"))
    assert middle.networks["vit_b"] == make_network(input_shape=[896, 640], spacing=0.14)
    assert last.networks["vit_b"] == make_network(input_shape=[896, 640], spacing=0.14, batch_size=4)
    assert (base.mirror_axes, middle.mirror_axes, last.mirror_axes) == ([0, 1], [0, 1], [])
    assert base.networks["small"] == middle.networks["small"] == last.networks["small"]
    assert base.networks["vit_b"] == make_network()


def test_a_configuration_may_leave_out_a_network():
    plans = make_plans(**{"2d_sam": {"inherits_from": "2d", "networks": {"small": None}}})
    assert list(plans.configuration("2d_sam").networks) == ["vit_b"]
    with pytest.raises(UsageError, match="hold networks for vit_b, not for small") as caught:
        plans.network(plans.configuration("2d_sam"), "small")
    assert caught.value.hint == "plan for it: `api.plan_experiment('Dataset027_ACDC', encoder='small')`"


def older(data):
    """The same plans as samunet 0.1.0 wrote them, with networks called by their kind."""
    for configuration in data["configurations"].values():
        networks = configuration.get("networks", {})
        for name, kind in (("vit_b", "sam"), ("vit_h", "sam"), ("small", "bundled")):
            if name in networks:
                networks[kind] = networks.pop(name)


def test_plans_of_0_1_0_are_read_with_encoders_as_names(path):
    smaller = {"inherits_from": "2d", "networks": {"vit_b": {"input_shape": [896, 640]}}}
    own = {"inherits_from": "2d_896", "mirror_axes": [], "networks": {"small": {"learning_rate": 5e-4}}}
    larger = {"inherits_from": "2d", "networks": {"vit_h": {"encoder": "vit_h", "batch_size": 2}}}
    new = make_plans(**{"2d_896": smaller, "mine": own, "no_networks": {"inherits_from": "2d"}})
    new.write(path)
    edit(path, older)
    assert "bundled" in path.read_text()
    assert read_plans(path) == new
    assert read_plans(path).configuration("mine").networks["small"].learning_rate == 5e-4
    edit(path, lambda data: data["configurations"].update(larger=larger))
    edit(path, older)
    networks = read_plans(path).configuration("larger").networks
    assert networks["vit_h"] == make_network(encoder="vit_h", batch_size=2)
    assert networks["vit_b"] == make_network()


@pytest.mark.parametrize("networks", [{"sam": 5}, {"sam": {"batch_size": 2}}, {"sam": {"encoder": 5}}, 7])
def test_damaged_plans_of_0_1_0_are_refused(path, networks):
    edit(path, lambda data: data["configurations"].update(odd={"networks": networks, "inherits_from": "odd"}))
    with pytest.raises(SamunetError, match="in a circle"):
        read_plans(path)
    edit(path, lambda data: data["configurations"].update(odd={"networks": networks}))
    with pytest.raises(SamunetError, match="configuration 'odd'"):
        read_plans(path)


def test_plans_with_an_adaptations_settings_beside_its_name(path):
    """As they were written until ``adaptation`` held both; with what configurations of one's own say of them."""

    def before(data):
        for network in two_d(data)["networks"].values():
            method = network["adaptation"].pop("method")
            settings = {"lora": None, "adapter": None} | ({method: network["adaptation"]} if method == "lora" else {})
            network |= {"adaptation": method, **settings}
        changes = {
            "rank8": {"lora": {"rank": 8}}, "all": {"adaptation": "full", "lora": None},
            "newer": {"adaptation": {"method": "adapter"}},
            "wide": {"adaptation": "adapter", "lora": None, "adapter": {"reduction": 2}},
        }  # fmt: skip
        for name, change in changes.items():
            data["configurations"][name] = {"inherits_from": "2d", "networks": {"vit_b": change}}

    edit(path, before)
    plans = read_plans(path)
    assert plans.configuration("2d") == make_plans().configuration("2d")
    expected = {"rank8": LoraPlan(rank=8), "wide": AdapterPlan(reduction=2), "all": FullPlan(), "newer": AdapterPlan()}
    for name, adaptation in expected.items():
        assert plans.configuration(name).networks["vit_b"] == make_network(adaptation=adaptation), name


def test_inheritance_survives_the_file(tmp_path):
    changes = {"inherits_from": "2d", "networks": {"vit_b": {"batch_size": 4}}}
    plans = make_plans(**{"2d_bs4": changes})
    plans.write(tmp_path / "p.json")
    read = read_plans(tmp_path / "p.json")
    assert read == plans
    assert read.configurations["2d_bs4"] == changes


@pytest.mark.parametrize(
    ("configurations", "expected"),
    [
        ({"a": {"inherits_from": "a"}}, "in a circle: a -> a"),
        ({"a": {"inherits_from": "b"}, "b": {"inherits_from": "a"}}, "in a circle: a -> b -> a"),
        ({"a": {"inherits_from": "2D"}}, "'a' inherits from '2D', which does not exist"),
        ({"a": {"inherits_from": ["2d"]}}, "inherits_from|inherits from"),
        ({"a": {"inherits_from": "2d", "networks": {"vit_b": {"batch_size": 1.5}}}}, "'a'.*vit_b.batch_size.*integer"),
        ({"a": {"inherits_from": "2d", "netwroks": {}}}, "'a'.*netwroks.*no such key"),
    ],
)
def test_wrong_inheritance(tmp_path, configurations, expected):
    make_plans(**configurations).write(tmp_path / "p.json")
    with pytest.raises(SamunetError, match=expected):
        read_plans(tmp_path / "p.json")


def test_unknown_configurations():
    plans = make_plans(**{"2d_896": {"inherits_from": "2d"}})
    for name in ("3d_fullres", "3d_lowres"):
        with pytest.raises(UsageError, match="slice by slice") as caught:
            plans.configuration(name)
        assert caught.value.hint == "use one of: 2d, 2d_896"
    with pytest.raises(UsageError, match="no configuration '2d_95' in samunetPlans") as caught:
        plans.configuration("2d_95")
    assert caught.value.hint == "use one of: 2d, 2d_896"


def test_hash_depends_on_every_part_and_not_on_the_order_of_keys():
    assert fingerprint_of({"a": 1, "b": [2.5]}) == fingerprint_of({"b": [2.5], "a": 1})
    different = [
        fingerprint_of(*parts)
        for parts in ((1, 2), (2, 1), ([1, 2],), (1,), (make_network(),), (make_network(batch_size=2),))
    ]
    assert len(set(different)) == len(different)
    assert fingerprint_of(make_network()) == fingerprint_of(make_network().model_dump())


@pytest.mark.parametrize("name", ["", "a/b", "a\\b", ".hidden", "my__plans"])
def test_names_of_plans_are_parts_of_paths(name):
    with pytest.raises(UsageError, match="is no name for plans"):
        check_plans_name(name, "-overwrite_plans_name")


@pytest.mark.parametrize("name", ["dataset", "splits_final", "dataset_fingerprint"])
def test_plans_do_not_replace_other_files(name):
    with pytest.raises(UsageError, match=f"would replace the dataset's {name}.json"):
        check_plans_name(name, "-tp")
    check_plans_name(f"{name}_plans", "-tp")
