"""The loss as one module for TorchRL computes what the package computes."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from pathlib import Path

import pytest
import torch
from torchrl.objectives import SoftUpdate

from torchrl_smore.modules import goal_specs, make_networks
from torchrl_smore.objectives import SMORELoss

UPSTREAM = Path(__file__).parents[2] / "upstream"


@pytest.fixture(scope="module")
def one_file(tmp_path_factory):
    sys.path.insert(0, str(UPSTREAM))
    try:
        import build

        path = tmp_path_factory.mktemp("upstream") / "smore.py"
        path.write_text(build.loss_module(UPSTREAM.parent))
    finally:
        sys.path.remove(str(UPSTREAM))
    spec = importlib.util.spec_from_file_location("torchrl_objectives_smore", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_contributing_says_how_long_it_is(one_file):
    (said,) = re.findall(r"The module is about ([\d,]+) lines", (UPSTREAM.parent / "CONTRIBUTING.md").read_text())
    lines = len(Path(one_file.__file__).read_text().splitlines())
    assert abs(int(said.replace(",", "")) - lines) < 100


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"formulation": "dual", "divergence": "kl"},
        {"formulation": "official"},
        {"formulation": "official_stable", "num_score_nets": 1},
        {"actor": "score", "value_target": "policy", "expectile": 0.5},
        {"advantage_unit": "horizon", "deactivate_vmap": True},
        {"reduction": "sum"},
    ],
    ids=str,
)
def test_losses_and_gradients_are_those_of_the_package(one_file, options, batch_for, total):
    def make(kind):
        networks = make_networks(*goal_specs(3, 2, 2), hidden=(8,), num_score_nets=options.get("num_score_nets", 2))
        loss = kind(networks.actor, networks.score, networks.value, **options)
        SoftUpdate(loss, tau=0.1)
        return loss

    ours, theirs = make(SMORELoss), make(one_file.SMORELoss)
    theirs.load_state_dict(ours.state_dict())
    assert not isinstance(theirs, SMORELoss)
    batch = batch_for(ours)
    out, other = ours(batch), theirs(batch)
    assert list(out.keys()) == list(other.keys())
    for key, value in out.items():
        torch.testing.assert_close(other[key], value, rtol=0.0, atol=0.0)
    total(out).backward()
    total(other).backward()
    for (name, one), (_, two) in zip(ours.named_parameters(), theirs.named_parameters()):
        assert (one.grad is None) == (two.grad is None), name
        if one.grad is not None:
            torch.testing.assert_close(two.grad, one.grad, rtol=0.0, atol=0.0)


def test_nothing_of_this_package_is_named(one_file):
    text = Path(one_file.__file__).read_text()
    assert "torchrl_smore" not in text
    assert "kernel" not in text.lower()
    # its losses and its list of errata
    assert "this package" not in text
    assert "errat" not in text


def test_its_docstring_has_every_argument_the_paper_and_the_config(one_file):
    text = one_file.SMORELoss.__doc__
    for name in inspect.signature(one_file.SMORELoss).parameters:
        assert len(re.findall(rf"^        {name}: ", text, re.MULTILINE)) == 1, name
    assert "https://arxiv.org/abs/2311.02013" in text
    assert ":class:`~torchrl.trainers.algorithms.configs.SMORELossConfig`" in text


def test_the_example_in_its_docstring_runs(one_file):
    import doctest

    parser = doctest.DocTestParser()
    text = one_file.SMORELoss.__doc__.replace("from torchrl.objectives import SMORELoss", "pass")
    example = parser.get_doctest(text, {"SMORELoss": one_file.SMORELoss}, "SMORELoss", None, 0)
    assert len(example.examples) > 8
    result = doctest.DocTestRunner(verbose=False).run(example)
    assert result.failed == 0
