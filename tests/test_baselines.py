"""The dense networks: trained once, the same for every notebook, buildable in every profile."""

import pytest
import torch

from lib import baselines, models, parameters, training
from lib.provenance import CompanionError
from lib.store import canonical

SPEC = {"dataset": "digits", "network": "mlp", "source": "trained", "seed": 0, "epochs": 2, "lr": 0.1, "limit": 300}


def test_divergence_is_reported_with_its_epoch_and_becomes_a_failed_row(tmp_path):
    study = baselines.baselines(tmp_path)
    rows = study.run([SPEC | {"lr": 1e6}])
    assert rows["status"].tolist() == ["failed"]
    assert rows["reason"][0].startswith("Diverged: the training loss became") and "epoch" in rows["reason"][0]


def test_a_baseline_is_trained_once_and_has_the_accuracy_of_its_row(tmp_path, capsys):
    rows = baselines.baselines(tmp_path).run([SPEC])
    capsys.readouterr()
    model, digits = baselines.baseline(SPEC, tmp_path)
    assert training.evaluate(model, digits.test, digits)["accuracy"] == rows["test_accuracy"][0]
    assert capsys.readouterr().err == "" and not model.training
    baselines.baselines(tmp_path).weights(SPEC).unlink()
    again, _ = baselines.baseline(SPEC, tmp_path)
    assert "it is trained again" in capsys.readouterr().out
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_shuffled_labels_change_training_and_nothing_else(tmp_path):
    spec = SPEC | {"epochs": 8, "batch_size": 50, "augment": False}
    # The network after the shuffled one reads the same cached data set: it must not see shuffled labels.
    rows = baselines.baselines(tmp_path).run([spec, spec | {"labels": "shuffled"}, spec | {"seed": 1}])
    assert rows["test_accuracy"][0] > 0.8 and rows["test_accuracy"][1] < 0.35 and rows["test_accuracy"][2] > 0.8


def test_costs_count_and_time_a_network(tmp_path):
    rows = baselines.costs(tmp_path).run([{"dataset": "digits", "network": "mlp"}])
    assert rows["macs"][0] == 64 * 128 + 128 * 128 + 128 * 10
    assert rows["parameters"][0] == rows["macs"][0] + 128 + 128 + 10
    public = baselines.cost_specs([{"dataset": "cifar100", "network": "resnet20", "source": "public"}])
    assert models.count_parameters(baselines.untrained(public[0])) == 278_324  # option B, as published
    assert 0 < rows["made_latency_1_ms"][0] < 1e3


def test_a_network_is_found_by_its_name_and_its_data_set():
    sizes = {"seeds": 2, "null_seeds": 1, "epochs": 3, "batch_size": 8, "lr": 0.1, "linear_lr": 0.1, "limit": 0}
    lists = {"networks": ["mlp", "resnet8"], "elsewhere": ["mlp/digits16"], "public": ["resnet8/digits"]}
    how = {"dataset": "digits", "schedule": "cosine", "augment": False, "null_network": "mlp", "precision": "float32"}
    known = baselines.baseline_specs(sizes | lists | how)
    assert len(known) == 2 * 3 + 1 + 1
    found = [baselines.find_baseline(name, known, 1) for name in ("mlp", "mlp/digits16")]
    assert [spec["dataset"] for spec in found] == ["digits", "digits16"]
    assert all(spec["seed"] == 1 and "labels" not in spec for spec in found)
    # A checkpoint of a network and data set that are trained here as well is meant by a name with its data set.
    assert baselines.find_baseline("resnet8/digits", known, 1) == known[-1]
    assert baselines.find_baseline("resnet8", known)["source"] == "trained"
    with pytest.raises(CompanionError, match="in both public and elsewhere"):
        baselines.baseline_specs(sizes | lists | how | {"elsewhere": lists["public"]})
    for name, seed in (("resnet56", 0), ("resnet8", 2), ("mlp/digits16", 2)):
        with pytest.raises(CompanionError, match=rf"^{name}[^\n]*\.$"):
            baselines.find_baseline(name, known, seed)


def test_pairs_of_precisions_differ_by_nothing_else_and_share_rows_with_the_baselines(tmp_path):
    asked = parameters.profile_parameters("laptop", "00_baselines")
    pairs = baselines.precision_specs(asked)
    for seed, (one, other) in enumerate(zip(pairs[::2], pairs[1::2], strict=True)):
        assert one["seed"] == seed and one["precision"] == "bfloat16"
        assert other == one | {"precision": "float32"}
    assert len(pairs) == 2 * asked["compared_seeds"] and pairs[0] in baselines.baseline_specs(asked)
    assert baselines.precision_specs(asked | {"precision": "float32"}) == []


def test_a_row_without_a_precision_is_that_of_float32(tmp_path):
    study = baselines.baselines(tmp_path)
    key = study.store.key(canonical(SPEC))
    assert study.store.key(canonical(SPEC | {"precision": "float32"})) == key
    assert study.store.key(canonical(SPEC | {"precision": "bfloat16"})) != key
    study.run([SPEC])
    asked = [SPEC | {"precision": "float32"}]
    assert study.missing(asked) == [] and study.rows(asked)["precision"].tolist() == ["float32"]


def test_any_network_can_be_trained_as_those_that_are_not_linear():
    known = baselines.profile_baselines("smoke")
    spec = baselines.trained_like("resnet20", "digits", known)
    assert spec == baselines.find_baseline("resnet8", known) | {"network": "resnet20"}


def test_every_profile_names_baselines_that_can_be_built():
    for profile in parameters.profiles():
        specs = baselines.profile_baselines(profile)
        assert len({baselines.baselines(None).store.key(canonical(spec)) for spec in specs}) == len(specs)
        for spec in specs:
            assert spec["source"] == "trained" or (spec["network"], spec["dataset"]) in models.PUBLIC
        with torch.device("meta"):
            for spec in baselines.cost_specs(specs):
                assert baselines.untrained(spec) is not None
