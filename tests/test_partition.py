"""The exact partition against forward passes, autograd, grids of codes, closed forms and Euler's formula."""

from math import comb

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch import nn
from torch.nn import functional as F

from lib import channels, models
from lib.provenance import CompanionError
from lib.spline import partition

BOX = ((-2.0, 2.0), (-2.0, 2.0))


def mlp(*widths: int, rng: np.random.Generator) -> nn.Sequential:
    """Linear and ReLU layers with standard normal weights, drawn W before b, layer by layer."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(inputs, outputs).double(), nn.ReLU()]
        layers[-2].weight.data = torch.from_numpy(rng.standard_normal((outputs, inputs)))
        layers[-2].bias.data = torch.from_numpy(rng.standard_normal(outputs))
    return nn.Sequential(*layers[:-1])


def homogeneous(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points, np.ones((len(points), 1))], 1)


def relu_codes(network: nn.Module, inputs: torch.Tensor) -> np.ndarray:
    """Signs of what every ReLU of a network sees, (n, units), by hooks: an oracle that knows no geometry."""
    seen: list[torch.Tensor] = []
    hooks = [m.register_forward_pre_hook(lambda _, x: seen.append(x[0].flatten(1) > 0)) for m in relus(network)]
    with torch.no_grad():
        network.double().eval()(inputs.double())
    for hook in hooks:
        hook.remove()
    return torch.cat(seen, 1).numpy()


def relus(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, nn.ReLU | nn.LeakyReLU)]


def containing(found: partition.Partition, points: np.ndarray) -> np.ndarray:
    """The region of each point, by the signs of its position against every edge."""
    corners, ahead = found.cells.corners, np.roll(found.cells.corners, -1, 1)
    x, y = np.moveaxis(ahead - corners, 2, 0)
    inside = np.empty((len(points), len(found)), dtype=bool)
    for k, (px, py) in enumerate(points):
        inside[k] = (x * (py - corners[..., 1]) - y * (px - corners[..., 0]) >= -1e-9).all(1)
    assert inside.any(1).all()
    return inside.argmax(1)


def all_codes(found: partition.Partition) -> np.ndarray:
    return np.concatenate([found.codes(layer) for layer in range(len(found.layers))], 1)


@pytest.mark.parametrize(("seed", "regions"), [(0, 233), (1, 312), (2, 388)])
def test_random_two_layer_networks_have_the_known_numbers_of_regions(seed, regions):
    rng = np.random.default_rng(seed)
    found = partition.split(mlp(2, 16, 16, 3, rng=rng), BOX)
    assert len(found) == len(np.unique(found.packed, axis=0)) == regions
    assert found.area.sum() == pytest.approx(16, rel=1e-9)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_every_point_of_a_grid_lies_in_the_polygon_of_its_code_with_the_map_of_its_gradient(depth, seed):
    network = mlp(2, *[12] * depth, 3, rng=np.random.default_rng(100 * depth + seed))
    found = partition.split(network, BOX)
    assert found.area.sum() == pytest.approx(16, rel=1e-9)
    axis = np.linspace(-1.99, 1.99, 57)
    points = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    region = containing(found, points)
    inputs = torch.from_numpy(points).requires_grad_()
    assert (relu_codes(network, inputs) == all_codes(found)[region]).mean() > 0.9999  # a point may lie on a line
    outputs = network(inputs)
    values = np.einsum("nok,nk->no", found.maps[region], homogeneous(points))
    scale = outputs.abs().max().item()
    assert np.abs(values - outputs.detach().numpy()).max() < 1e-9 * scale
    slopes = np.stack([torch.autograd.grad(outputs[:, k].sum(), inputs, retain_graph=True)[0] for k in range(3)], 1)
    assert np.quantile(np.abs(slopes - found.maps[region, :, :2]).max((1, 2)), 0.999) < 1e-9 * np.abs(slopes).max()
    assert len(np.unique(relu_codes(network, inputs), axis=0)) <= len(found)


@pytest.mark.parametrize("widths", [(2, 16, 16, 1), (2, 8, 8, 8, 1), (2, 25, 1)])
def test_euler_counts_corners_edges_and_regions(widths):
    found = partition.split(mlp(*widths, rng=np.random.default_rng(0)), BOX)
    ends = found.cells.edges()[0]
    tree = cKDTree(ends.reshape(-1, 2))
    same = np.array([neighbours[0] for neighbours in map(sorted, tree.query_ball_point(tree.data, 1e-8))])
    edges = np.unique(np.sort(same.reshape(-1, 2), 1), axis=0)
    assert (edges[:, 0] != edges[:, 1]).all()
    assert len(np.unique(same)) - len(edges) + len(found) == 1
    if widths == (2, 16, 16, 1):
        assert (len(np.unique(same)), len(edges), len(found)) == (264, 496, 233)


def test_copies_of_nodes_add_no_region():
    rng = np.random.default_rng(0)
    small = mlp(2, 5, 1, rng=rng)
    large = mlp(2, 7, 1, rng=rng)
    for name in ("weight", "bias"):
        own = getattr(small[0], name).data
        getattr(large[0], name).data = torch.cat([own, 3.7 * own[:1], -2 * own[1:2]])
    window = ((-1e4, 1e4), (-1e4, 1e4))
    assert len(partition.split(small, window)) == len(partition.split(large, window)) == 1 + 5 + comb(5, 2)


def cross(nodes: list[tuple[float, float]], outgoing: list[float]) -> nn.Sequential:
    """sum of outgoing * relu(node . x) as logit 0, and 0 as logit 1."""
    network = nn.Sequential(nn.Linear(2, len(nodes)), nn.ReLU(), nn.Linear(len(nodes), 2)).double()
    network[0].weight.data, network[0].bias.data = torch.tensor(nodes).double(), torch.zeros(len(nodes)).double()
    network[2].weight.data = torch.tensor([outgoing, [0.0] * len(nodes)]).double()
    network[2].bias.data = torch.zeros(2).double()
    return network


AXES = [(0.0, 1.0), (0.0, -1.0), (1.0, 0.0), (-1.0, 0.0)]


def test_two_lines_are_enough_for_the_cross_and_a_node_with_the_same_line_is_not_redundant():
    full = partition.split(cross(AXES, [1, 1, -1, -1]), ((-5, 5), (-5, 5)))
    assert len(full) == 4
    assert np.linalg.norm(np.diff(full.boundary, axis=1), axis=2).sum() == pytest.approx(20 * np.sqrt(2))
    points = torch.rand(100_000, 2, generator=torch.Generator().manual_seed(0)).double() * 10 - 5
    wanted = points[:, 1].abs() > points[:, 0].abs()
    right = cross(AXES, [1, 1, -1, -1])(points).argmax(1) == 0
    assert (right == wanted).all()
    dropped = cross(AXES[:3], [1, 1, -1])(points).argmax(1) == 0
    assert (dropped == wanted).double().mean().item() == pytest.approx(0.75, abs=0.006)


def test_the_boundary_of_the_maximum_norm_is_a_square_on_two_diagonals():
    network = cross([(1, 1), (-1, -1), (1, -1), (-1, 1)], [0.5] * 4)
    network[2].bias.data[0] = -1.0
    points = torch.rand(10_000, 2, generator=torch.Generator().manual_seed(0)).double() * 4 - 2
    assert (network(points)[:, 0] - (points.abs().amax(1) - 1)).abs().max() < 1e-14
    found = partition.split(network, BOX)
    assert len(found) == 4
    assert np.abs(found.boundary).max(2) == pytest.approx(1)
    assert np.linalg.norm(np.diff(found.boundary, axis=1), axis=2).sum() == pytest.approx(8)


def test_the_line_that_the_released_toy_draws_in_red_is_not_the_decision_boundary():
    network = mlp(2, 8, 2, rng=np.random.default_rng(3))
    raised = mlp(2, 8, 2, rng=np.random.default_rng(3))
    points = torch.rand(20_000, 2, generator=torch.Generator().manual_seed(0)).double() * 4 - 2
    before = network(points)
    raised[2].bias.data -= before[:, 0].median().detach()  # both outputs: no decision changes
    after = raised(points)
    assert (before.argmax(1) == after.argmax(1)).all()
    moved = (before[:, 0] > 0) != (after[:, 0] > 0)  # sides of the zero set of output 0 alone
    assert moved.double().mean() > 0.1
    boundaries = [partition.split(one, BOX).boundary for one in (network, raised)]
    assert np.allclose(*boundaries, atol=1e-9)


@pytest.mark.parametrize(("points", "seen"), [(20, 123), (100, 205)])
def test_codes_on_a_grid_count_too_few_regions(points, seen):
    network = mlp(2, 16, 16, 1, rng=np.random.default_rng(0))
    axis = torch.linspace(-2, 2, points, dtype=torch.float64)
    codes = relu_codes(network, torch.cartesian_prod(axis, axis))
    assert len(np.unique(codes, axis=0)) == seen < len(partition.split(network, BOX)) == 233


def test_a_boundary_along_an_edge_of_the_partition_is_not_lost():
    network = cross([(1, 0), (-1, 0)], [1, -1])
    assert np.linalg.norm(np.diff(partition.split(network, BOX).boundary, axis=1), axis=2).sum() == pytest.approx(4)


def test_the_boundary_of_many_classes_is_where_the_largest_changes():
    network = mlp(2, 10, 5, rng=np.random.default_rng(3))
    found = partition.split(network, BOX)
    middle = found.boundary.mean(1)
    top = network(torch.from_numpy(middle)).sort(dim=1, descending=True).values.detach()
    assert (top[:, 0] - top[:, 1]).abs().max() < 1e-9
    axis = np.linspace(-2, 2, 801)
    points = np.stack(np.meshgrid(axis, axis), -1)
    winner = network(torch.from_numpy(points.reshape(-1, 2))).argmax(1).view(801, 801).numpy()
    changes = points[:, :-1][winner[:, 1:] != winner[:, :-1]]
    near = cKDTree(np.concatenate([s[0] + np.linspace(0, 1, 200)[:, None] * (s[1] - s[0]) for s in found.boundary]))
    assert near.query(changes)[0].max() < 0.02


def test_layer_one_lines_are_straight_and_complete_and_each_node_has_its_own():
    network = mlp(2, 6, 6, 1, rng=np.random.default_rng(0))
    found = partition.split(network, BOX)
    weight, bias = (value.detach().numpy() for value in network[0].parameters())
    for unit, segments in found.lines(0).items():
        assert np.abs(segments @ weight[unit] + bias[unit]).max() < 1e-9
    hidden = network[:3]
    for unit, segments in found.lines(1).items():
        assert hidden(torch.from_numpy(segments.reshape(-1, 2)))[:, unit].abs().max() < 1e-8


class Block(nn.Module):
    """A residual block with a functional ReLU, average pooling and a mean, as the networks here have."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(2), nn.Linear(2, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.second(F.relu(self.first(x)))) + x)
        return self.head(F.avg_pool2d(x, 2).mean((2, 3)))


def random_plane(shape: tuple[int, ...], seed: int = 0) -> partition.Plane:
    stream = torch.Generator().manual_seed(seed)
    return partition.Plane.through(*torch.randn(3, *shape, generator=stream).double())


def lifted(plane: partition.Plane, points: np.ndarray) -> torch.Tensor:
    s, t = torch.from_numpy(points).T[:, :, *[None] * plane.origin.dim()]
    return plane.origin + s * plane.first + t * plane.second


NETWORKS = {
    "residual": (Block, (2, 5, 5)),
    "max pooling": (lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()), (1, 6, 6)),
    "padded pooling": (lambda: nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(9, 2)), (1, 5, 5)),
    "leaky": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.LeakyReLU(0.2), nn.Linear(8, 2)), (1, 3, 3)),
    "digits_cnn": (lambda: models.build("digits_cnn", channels=1, size=8, width=0.25), (1, 8, 8)),
    "pruned resnet8": (
        lambda: channels.keep(models.build("resnet8", channels=1, size=8, width=0.25), {"conv1": [0, 2]}, size=8),
        (1, 8, 8),
    ),
    "resnet8": (lambda: models.build("resnet8", channels=1, size=8, width=0.25), (1, 8, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_slices_of_image_networks_are_affine_in_every_region(name):
    make, shape = NETWORKS[name]
    half = 0.03 if shape == (1, 8, 8) else 1.0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.data.normal_()
    network, plane = network.double().eval(), random_plane(shape)
    found = partition.split(network, ((-half, half), (-half, half)), plane)
    assert found.area.sum() == pytest.approx(4 * half**2, rel=1e-9)
    assert len(found) > 10
    points = np.random.default_rng(0).uniform(-half, half, (60, 2))
    region = containing(found, points)
    inputs = lifted(plane, points)
    with torch.no_grad():
        outputs = network(inputs).numpy()
    values = np.einsum("nok,nk->no", found.maps[region], homogeneous(points))
    assert np.abs(values - outputs).max() < 1e-9 * max(1, np.abs(outputs).max())
    if relus(network) and not any("pool" in layer or "MaxPool" in str(network) for layer, _ in found.layers):
        assert (relu_codes(network, inputs) == all_codes(found)[region]).all()


def test_blocks_of_regions_change_nothing(monkeypatch):
    network = mlp(2, 16, 16, 16, 2, rng=np.random.default_rng(0))
    whole = partition.split(network, BOX)
    monkeypatch.setattr(partition, "BLOCK", 500)
    blocks = partition.split(network, BOX)
    assert len(blocks) == len(whole)
    assert np.unique(whole.packed, axis=0).tolist() == np.unique(blocks.packed, axis=0).tolist()
    assert blocks.layers == whole.layers


class Shared(nn.Module):
    """One ReLU module for two layers, as in torchvision's blocks."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.relu = nn.Linear(2, 5), nn.Linear(5, 5), nn.ReLU()

    def forward(self, x):
        return self.relu(self.second(self.relu(self.first(x))))


class Mixing(nn.Module):
    def forward(self, x):
        return (x + x[:1])[:1]


def test_a_relu_that_is_used_twice_bends_two_layers():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = partition.split(Shared(), BOX)
    assert [units for _, units in found.layers] == [5, 5]
    assert len({name for name, _ in found.layers}) == 2
    assert len(np.unique(found.packed, axis=0)) == len(found)


def test_a_network_that_mixes_the_inputs_of_a_batch_is_refused():
    with pytest.raises(CompanionError, match="mixes the inputs"):
        partition.split(Mixing(), BOX)


@pytest.mark.parametrize(
    ("layer", "name"), [(nn.GELU(), "1 .GELU."), (nn.Softmax(1), "1 .Softmax."), (nn.LayerNorm(4), "1 .LayerNorm.")]
)
def test_a_layer_that_is_not_piecewise_affine_is_named(layer, name):
    with pytest.raises(CompanionError, match=f"Layer {name}"):
        partition.split(nn.Sequential(nn.Linear(2, 4), layer), BOX)


def test_a_vision_transformer_is_refused():
    with pytest.raises(CompanionError, match="Layer|cannot be followed"):
        partition.split(models.build("vit_b_16", size=32), BOX, random_plane((3, 32, 32)))


def test_weights_that_are_not_finite_and_planes_without_directions_are_refused():
    network = mlp(2, 4, 1, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="two directions"):
        partition.split(network, BOX, partition.Plane.through(*torch.zeros(3, 2)))
    network[0].weight.data[0, 0] = torch.nan
    with pytest.raises(CompanionError, match="0.weight of the network is not finite"):
        partition.split(network, BOX)
