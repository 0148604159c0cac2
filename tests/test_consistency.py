"""Parameters that cannot be run together are refused with a sentence that names the remedy, before anything starts."""

import pytest

from lib import parameters
from lib.consistency import contradiction
from lib.provenance import CompanionError

CASES = [
    ("00_baselines", {"networks": ["mlp"]}, "networks must hold linear"),
    ("00_baselines", {"networks": ["linear", "mlp", "mlp"]}, "networks holds mlp more than once"),
    ("00_baselines", {"seeds": 1}, "seeds is 1: an interval needs 2 or more"),
    ("00_baselines", {"elsewhere": ["mlp"]}, "write network/dataset, such as mlp/cifar10"),
    ("01_latent_kl", {"trained": ["resnet8"]}, "two networks or more"),
    ("01_latent_kl", {"fractions": [0.15, 0.5]}, "grid must hold all of fractions"),
    ("02_tensor_truncation", {"trained": [], "enlarged": []}, "name a network"),
    ("02_tensor_truncation", {"steps": {"resnet9": 3}}, "steps names 'resnet9'"),
    ("02_tensor_truncation", {"cases": [["OUTT", 0.5]]}, "cases holds 'OUTT'"),
    ("03_pruning_spaces", {"contest_share": 0.35}, "contest_share must be one of shares"),
    ("04_spline_early_bird", {"widths": [0.5, 0.25]}, "widths has 2 entries and networks 1"),
    ("04_spline_early_bird", {"full": ["resnet8"]}, "full must name some of networks"),
    ("04_spline_early_bird", {"full": []}, "full must name some of networks"),
    ("04_spline_early_bird", {"seeds": 1}, "an interval needs 2 or more"),
    ("04_spline_early_bird", {"tuned_levels": [10, 4]}, "tuned_levels must be some of levels"),
    ("04_spline_early_bird", {"levels": [40, 8, 4]}, "levels must lie below toy_width"),
    ("00_baselines", {"decides": ["B0.9"]}, "Unknown claim .*B0.9"),
]


@pytest.mark.parametrize(("notebook", "changes", "sentence"), CASES)
def test_what_cannot_be_run_together_is_one_sentence(notebook, changes, sentence):
    with pytest.raises(CompanionError, match=rf"^[^\n]*{sentence}[^\n]*\.$"):
        parameters.checked(notebook, changes, f"runs/mine/{notebook}.yaml")


def test_every_committed_profile_and_every_notebook_fits():
    for name in parameters.notebook_names():
        assert contradiction(name, parameters.default_parameters(name)) == ""
    assert contradiction("00_toy", {"names": ["a"]}) == ""


def test_a_number_that_yaml_reads_as_text_is_told_with_its_remedy():
    with pytest.raises(CompanionError, match=r"lr is '1e-2'; it must be a number. Write 0.01"):
        parameters.checked("00_baselines", {"lr": "1e-2"}, "runs/mine/00_baselines.yaml")
