"""Networks and data sets of one's own: by import path or folder, in workers too, with their file in the provenance."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from lib import baselines, data, export, models, parameters, provenance
from lib.provenance import CompanionError
from lib.study import Study

MODULE = """
import torch
from torch import nn

def network(classes, channels, size):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size**2, 16), nn.ReLU(), nn.Linear(16, classes))

def images():
    stream = torch.Generator().manual_seed(0)
    draw = torch.randint(256, (60, 1, 6, 6), dtype=torch.uint8, generator=stream)
    return draw[:40], torch.arange(40) % 4, draw[40:], torch.arange(20) % 4

def nothing(classes, channels, size):
    return None

def three():
    return images()[:3]

def wide():
    return (torch.zeros(2, 1, 4, 5, dtype=torch.uint8), torch.arange(2)) * 2

def gap():
    return torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 2]), *images()[2:]

number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_module.py").write_text(MODULE)
    data._arrays.cache_clear()
    yield tmp_path / "own_module.py"
    data._arrays.cache_clear()


@pytest.fixture
def photos(tmp_path):
    """A folder of two classes with images of 12 x 10 pixels."""
    for part, count in (("train", 6), ("test", 3)):
        for label, shade in enumerate((40, 200)):
            folder = tmp_path / "photos" / part / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (12, 10), (shade, number, 0)).save(folder / f"{number}.png")
    return tmp_path / "photos"


SPEC = {"network": "own_module:network", "dataset": "own_module:images", "source": "trained", "seed": 0, "lr": 0.1}
SPEC |= {"epochs": 1, "augment": False, "batch_size": 16}


def test_an_own_network_is_trained_on_own_images_in_workers_and_its_file_is_recorded(own, tmp_path):
    study = baselines.baselines(tmp_path / "runs")
    rows = study.run([SPEC, SPEC | {"seed": 1}], workers=2)
    assert list(rows["status"]) == ["done", "done"], list(rows["reason"])
    digest = hashlib.sha256(own.read_bytes()).hexdigest()[:12]
    assert set(rows["made_own"]) == {f"own_module:network {digest}, own_module:images {digest}"} or set(
        rows["made_own"]
    ) == {f"own_module:images {digest}, own_module:network {digest}"}
    assert provenance.stale(rows) == ""
    own.write_text(MODULE + "\nnumber = 4\n")
    assert "another version of" in provenance.stale(rows) and "\n" not in provenance.stale(rows)
    model, dataset = baselines.baseline(SPEC, tmp_path / "runs")
    assert (dataset.classes, dataset.channels, dataset.size) == (4, 1, 6) and model[3].out_features == 4


def test_initial_weights_follow_from_the_seed_and_the_network_can_be_exported(own, tmp_path):
    before = torch.get_rng_state()
    one, two, other = (models.build("own_module:network", size=6, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one[1].weight, two[1].weight) and not torch.equal(one[1].weight, other[1].weight)
    assert torch.equal(before, torch.get_rng_state())
    export.write(one, tmp_path / "own.safetensors")
    assert torch.equal(export.rebuild(tmp_path / "own.safetensors")[1].weight, one[1].weight)


def test_own_images_are_normalised_by_their_own_statistics(own):
    loaded = data.load("own_module:images", validation=0.25)
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (30, 10, 20)
    everything = torch.cat([loaded.train.images, loaded.validation.images])
    pixels = data.normalise(everything, loaded.mean, loaded.std)
    assert abs(pixels.mean()) < 1e-5 and abs(pixels.std(correction=0) - 1) < 1e-5 and not loaded.flip


def test_a_folder_of_images_is_a_data_set(photos):
    loaded = data.load(f"{photos}@8", validation=0.0)
    assert (loaded.classes, loaded.channels, loaded.size) == (2, 3, 8) and len(loaded.train) == 12
    assert loaded.train.images[loaded.train.labels == 1, 0].unique().tolist() == [200]
    assert provenance.own_code({"dataset": f"{photos}@8"}).startswith(f"{photos}@8 ")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nowhere_at_all:images", "no module nowhere_at_all"),
        ("own_module:missing", "no function missing"),
        ("own_module:number", "no function number"),
        ("own_module:three", "must return four tensors"),
        ("own_module:wide", r"channels, side, side"),
        ("own_module:gap", "label its training images 0, 1, 2"),
        ("fotos", "Unknown data set 'fotos'"),
        ("./no/such/folder", "has no folder train"),
    ],
)
def test_a_data_set_that_is_none_is_refused_in_one_sentence(name, sentence, own):
    with pytest.raises(CompanionError, match=sentence) as error:
        data.load(name)
    assert "\n" not in str(error.value)


def test_images_of_several_shapes_are_refused_with_the_remedy(photos):
    with pytest.raises(CompanionError, match="@64 to resize"):
        data.load(str(photos))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nowhere_at_all:net", "no module nowhere_at_all"),
        ("own_module:images", "must take classes, channels and size"),
        ("own_module:nothing", "returned a NoneType"),
    ],
)
def test_a_network_that_is_none_is_refused_in_one_sentence(name, sentence, own):
    with pytest.raises(CompanionError, match=sentence) as error:
        models.build(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("00_baselines", {"networks": ["linear", "own_module:network"]}),
        ("00_baselines", {"elsewhere": ["own_module:network/own_module:images"]}),
        ("00_baselines", {"dataset": "own_module:images"}),
        ("02_tensor_truncation", {"trained": ["own_module:network"], "controlled": ["own_module:network"]}),
    ],
)
def test_own_names_stand_wherever_a_network_or_data_set_is_named(name, values, own):
    problems = [
        text for text in parameters._problems(name, values, parameters.default_parameters(name)) if "own_" in text
    ]
    assert not [text for text in problems if "Unknown" in text]
    wrong = json.loads(json.dumps(values).replace("own_module", "absent_module"))
    assert any(
        "absent_module" in text for text in parameters._problems(name, wrong, parameters.default_parameters(name))
    )


def trial(spec, device, weights):
    if weights:
        models.save(models.build("mlp", size=2), weights)
    return {"value": 1, "kept": weights is not None}


def test_a_study_keeps_weights_on_request_alone(tmp_path):
    study = Study("99_any.thing", trial, version=1, folder=tmp_path, keeps=False)
    rows = study.run([{"a": 1}, {"a": 2}])
    assert not rows["kept"].any() and not list(tmp_path.rglob("*.safetensors"))
    path = study.weights({"a": 1})
    assert path.exists() and len(list(tmp_path.rglob("*.safetensors"))) == 1
    assert not study.rows([{"a": 1}])["kept"].any()  # the row stays
    assert np.all(Study("99_any.other", trial, version=1, folder=tmp_path).run([{"a": 1}])["kept"])


def test_rows_of_other_code_are_reported_in_one_line(tmp_path):
    rows = Study("99_any.thing", trial, version=1, folder=tmp_path).run([{"a": 1}, {"a": 2}])
    assert provenance.stale(rows) == ""
    rows.loc[0, "made_code"] = "000000000000"
    assert provenance.stale(rows).startswith(
        "1 of 2 stored rows were made by other code"
    ) and "\n" not in provenance.stale(rows)
