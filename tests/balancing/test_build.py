"""From configs to balancers: names, arguments, nested parts, and messages that say what was meant."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchjd.aggregation

import perception.balancing
from perception.balancing import Balancer, balancer_names, build_balancer
from perception.balancing.methods import PARTS
from tests.balancing import runs


def test_the_plain_sum():
    assert type(build_balancer("sum")) is type(build_balancer(None)) is Balancer
    assert build_balancer({"name": "sum", "weighting": "dwa"}).weighting.temperature == 2


def test_every_name_is_listed_once():
    assert len(set(balancer_names())) == len(balancer_names())
    assert {"sum", "pcgrad", "wpcgrad-dtp", "mclgs", "amtl", "mclgs+cagrad"} <= set(balancer_names())


def test_nested_names():
    balancer = build_balancer(
        {
            "name": "wpcgrad",
            "priority": {"name": "static", "schedule": "vel_to_seg", "favoured_probability": 0.9},
            "mode": "anchor",
            "scales": {"seg": 2.0},
            "weighting": {"name": "uncertainty", "lr": 0.1},
        }
    )
    (stage,) = balancer.combination
    assert stage.priority.favoured_probability == 0.9
    assert stage.mode == "anchor"
    assert balancer.scales == {"seg": 2.0}
    assert balancer.weighting.adam.lr == 0.1
    assert (
        build_balancer({"name": "wpcgrad", "priority": "seg_to_vel"}).combination[0].priority.schedule
        == "seg_to_vel"
    )
    linear = {"name": "linear", "initial": 60, "decrement": 0.1}
    assert build_balancer({"name": "mclgs", "pacing": linear}).combination[0].pacing(10) == pytest.approx(59)


def test_joined_names_share_out_their_arguments():
    balancer = build_balancer(
        {"name": "mclgs+cagrad", "c": 0.2, "mclgs": {"pacing": "ratio"}, "convention": "sum"}
    )
    assert balancer.combination[1].inner.c == 0.2
    assert balancer.convention == "sum"
    amtl = build_balancer({"name": "amtl", "potentials": runs.POTENTIALS, "floor": 1e-4})
    assert amtl.combination[0].floor == 1e-4


def test_pacing_by_ratio_learns_the_number_of_steps():
    balancer = runs.built("mclgs", pacing={"name": "ratio", "initial": 40, "ratio": 0.5})
    pacing = balancer.combination[0].pacing
    assert [pacing(step) for step in (0, 600, 1200, 2000)] == pytest.approx([40, 20, 0, 0])
    everyone = torch.ones(len(balancer.task_names), dtype=torch.bool)
    balancer.combine(torch.ones(len(everyone)), everyone, torch.eye(len(everyone)))
    assert balancer.report()["MCLGSWeighting"] == {"pacing": 40}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pcgard", "unknown balancer 'pcgard'. Did you mean 'pcgrad'"),
        ("mclgs+cagard", "Did you mean 'cagrad'"),
        ({"name": "pcgrad", "c": 0.5}, "'pcgrad' takes no argument 'c'. Allowed: none"),
        ({"name": "cagrad", "norm_epps": 0.5}, "Did you mean 'norm_eps'"),
        ({"name": "wpcgrad", "priority": "unifrom"}, "unknown priority 'unifrom'. Did you mean 'uniform'"),
        ({"name": "wpcgrad", "generator": 3}, "takes no argument 'generator'"),
        ({"name": "pcgrad", "weighting": "dwaa"}, "unknown weighting 'dwaa'. Did you mean 'dwa'"),
        ({"name": "amtl"}, "'achievement' needs the argument 'potentials'"),
        ({"name": "mclgs+cagrad", "potential": {}}, "which none of its methods takes"),
        ({"name": "dwa", "weighting": "rlw"}, "has 2 loss weightings"),
        ("dwa+rlw", "has 2 loss weightings"),
        ("pcgrad+pcgrad", "names a method twice"),
        ("pcgrad+geometric", "must be the first stage"),
        ("graddrop+pcgrad", "takes only a loss weighting beside it"),
        ({"name": "recon", "layers": ["a"], "convension": "sum"}, "Did you mean 'convention'"),
        ({"name": "recon", "layers": ["a"], "combinations": "pcgrad"}, "Did you mean 'combination'"),
        ({"weighting": "dwa"}, "give a name, or a dict"),
        (3, "balancer is 3; give a name"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(ValueError, match=message.replace("+", r"\+")):
        build_balancer(spec)


def test_all_names_of_the_package_exist():
    for name in perception.balancing.__all__:
        assert getattr(perception.balancing, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = perception.balancing.Nonsense


def test_names_and_arguments_that_others_build_on():
    """The signatures that were promised, called as promised."""
    b = perception.balancing
    gram = torch.tensor([[1.0, -0.5], [-0.5, 1.0]])
    for priority in (b.UniformPriority(), b.StaticPriority([(1, 2, {"a": 1.0})]), b.DynamicTaskPriority(2.0)):
        assert b.WPCGradWeighting(priority, mode="loop", generator=None).weights_for_order(
            gram, [0, 1]
        ).shape == (2,)
    for pacing in (
        b.LinearPacing(40, 0.1),
        b.LinearPacing.from_ratio(120, 2, 1000),
        b.ExponentialPacing(40, 0.9),
    ):
        assert b.MCLGSWeighting(pacing)(gram).shape == (2,)
    assert b.AchievementWeights({"a": 0.5, "b": 0.2}, 1.05, 2.0, 0.1).gamma == 2.0
    assert b.AchievementWeights(potentials={"a": 0.5}, margin=1.05, gamma=2.0, momentum=0.1).margin == 1.05
    assert isinstance(b.GeometricMean(), b.GeometricMean)
    assert b.ConnectionStrength() is not None
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    assert (
        b.plain_model(b.convert_task_norms(model, ("a", "b")), "a").state_dict().keys()
        == model.state_dict().keys()
    )
    for weighting in (b.WPCGradWeighting, b.MCLGSWeighting, b.PCGradWeighting, b.NashWeighting):
        assert issubclass(weighting, torchjd.aggregation.Weighting)


def test_the_plain_sum_does_not_import_torchjd():
    code = (
        "import sys, perception.balancing as b; b.build_balancer('sum'); sys.exit('torchjd' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_page_names_every_method():
    page = (Path(__file__).resolve().parents[2] / "docs" / "balancing.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([^`\n]+)`", page))
    assert set(balancer_names()) <= named
    assert {name for parts in PARTS.values() for name in parts} <= named
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    specs = [ast.parse(line, mode="exec").body[0].value for line in code.splitlines() if line]
    for spec in specs:
        assert build_balancer(value_of(spec)) is not None


def test_the_examples_of_the_page_on_architectures_run():
    page = Path(__file__).resolve().parents[2] / "docs" / "balancing_architectures.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    found = [{} for _ in blocks]
    for block, names in zip(blocks, found, strict=True):
        exec(compile(block, str(page), "exec"), names)  # noqa: S102  our own page
    (rotograd,) = found
    assert rotograd["model"].rotations.num_steps == 3
    assert all(rotograd["model"].rotations.angle(task) > 0 for task in ("left", "right"))


def value_of(node):
    """A config value from its source: literals and dict(...) only."""
    if isinstance(node, ast.Call):
        return {keyword.arg: value_of(keyword.value) for keyword in node.keywords}
    return ast.literal_eval(node)
