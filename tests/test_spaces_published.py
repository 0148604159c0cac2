"""The published recipes have the counts that their authors publish, and unremarkable places in their populations."""

import numpy as np
import pytest

from lib import channels, models
from lib.spaces import analysis as published
from lib.spaces import measures as spaces


def test_eagleeyes_recipes_have_the_published_macs_and_parameters():
    groups = published.eagleeye_groups()
    counts = {name: channels.count(groups, np.array(widths)) for name, widths in published.EAGLEEYE.items()}
    assert {name: round(macs / 1e9, 3) for name, (macs, _) in counts.items()} == {"3G": 3.080, "2G": 2.057, "1G": 1.034}
    stds = [spaces.recipe_std(groups, np.array(widths)) for widths in published.EAGLEEYE.values()]
    assert np.allclose(stds, [0.084, 0.129, 0.214], atol=0.0015)


def test_they_lie_where_the_specification_has_them():
    places = published.eagleeye_places(400, seed=0).set_index("recipe")
    # 29.4, 21.2 and 43.2 % of a large population; 400 recipes have a standard error of 2.5 %
    assert places["mcb_percentile"].tolist() == pytest.approx([29.4, 21.2, 43.2], abs=7)
    assert (places["std"] < places["std_median"]).all()
    assert places["mcb_median"].tolist() == pytest.approx([0.998, 0.985, 0.958], abs=0.02)


def test_published_results_scatter_around_one():
    table = published.results().set_index(["method", "network"])["mcb"]
    expected = {"ABCPruner-100": 0.876, "ABCPruner-80": 0.994, "ABCPruner-70": 0.986, "ABCPruner-50": 0.879}
    for method, value in expected.items():
        assert table[method, "resnet50"] == pytest.approx(value, abs=0.0015)
    assert table["uniform 0.5x", "resnet50"] == pytest.approx(0.951, abs=0.001)
    assert table["ABCPruner", "vgg16"] == pytest.approx(2.33, abs=0.02)
    assert table["ABCPruner", "resnet110"] == pytest.approx(1.07, abs=0.01)


def test_the_resnet50_of_62_million_operations_is_no_mildly_pruned_one_of_cifar_shape():
    stem, cifar = (models.count_macs(models.build("resnet50", form=f), (1, 3, 32, 32)) for f in ("imagenet", "cifar"))
    assert (stem, cifar) == (83_431_424, 1_297_829_888)
    assert 62.23e6 / stem == pytest.approx(0.746, abs=1e-3) and 62.23e6 / cifar < 0.05
