"""Cells cut by lines, the exact partition, its lines and its changes: closed forms, forward passes, autograd, grids."""

import copy
from math import comb

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import ConvexHull, cKDTree
from torch import nn
from torch.nn import functional as F

from lib import channels, models
from lib.provenance import CompanionError
from lib.spline import cells, partition, walk

BOX = ((-2.0, 2.0), (-2.0, 2.0))
OFF_CENTRE = ((-2.0, 2.0), (-1.0, 3.0))
HUGE = ((-1e4, 1e4), (-1e4, 1e4))
SQUARE = np.array([[[0, 0], [1, 0]], [[1, 0], [1, 1]], [[1, 1], [0, 1]], [[0, 1], [0, 0.5]], [[0, 0.5], [0, 0]]], float)


def generic(k: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, k, 3))


def cut(lines: np.ndarray, window=HUGE) -> partition.Cells:
    return partition.subdivide(partition.rectangle(window), lines, 0)[0]


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
    return [module for module in network.modules() if isinstance(module, nn.ReLU)]


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
    assert found.cells.area.sum() == pytest.approx(16, rel=1e-9)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_every_point_of_a_grid_lies_in_the_polygon_of_its_code_with_the_map_of_its_gradient(depth, seed):
    network = mlp(2, *[12] * depth, 3, rng=np.random.default_rng(100 * depth + seed))
    found = partition.split(network, BOX)
    assert found.cells.area.sum() == pytest.approx(16, rel=1e-9)
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
    assert len(partition.split(small, HUGE)) == len(partition.split(large, HUGE)) == 1 + 5 + comb(5, 2)


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
    return tuple(torch.randn(3, *shape, generator=stream).double())


def lifted(plane: partition.Plane, points: np.ndarray) -> torch.Tensor:
    origin, first, second = plane
    s, t = torch.from_numpy(points).T[:, :, *[None] * origin.dim()]
    return origin + s * (first - origin) + t * (second - origin)


NETWORKS = {
    "residual": (Block, (2, 5, 5)),
    "max pooling": (lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()), (1, 6, 6)),
    "padded pooling": (lambda: nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(9, 2)), (1, 5, 5)),
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
    assert found.cells.area.sum() == pytest.approx(4 * half**2, rel=1e-9)
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
    monkeypatch.setattr(walk, "BLOCK", 500)
    blocks = partition.split(network, BOX)
    assert len(blocks) == len(whole)
    assert np.unique(whole.packed, axis=0).tolist() == np.unique(blocks.packed, axis=0).tolist()
    assert blocks.layers == whole.layers


def test_how_many_numbers_are_handled_at_once_changes_no_bit(monkeypatch):
    network = mlp(2, 16, 16, 16, 2, rng=np.random.default_rng(0))
    whole = partition.split(network, BOX)
    monkeypatch.setattr(cells, "NUMBERS", 1)
    monkeypatch.setattr(walk, "REGIONS", 64)
    parts = partition.split(network, BOX)
    assert (parts.cells.corners == whole.cells.corners).all()
    assert (parts.packed == whole.packed).all()
    assert parts.maps == pytest.approx(whole.maps, rel=1e-12, abs=1e-12)


class Reused(nn.Module):
    """Sums in place, a constant, and a value that is read before and after its ReLU."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 9), nn.Linear(9, 2)

    def forward(self, x):
        x = self.first(x)
        y = F.relu(x) - 0.25
        y += x
        return self.second(F.relu(y + 1)) + y[:, :2]


def test_values_that_are_read_twice_and_changed_in_place_are_those_of_the_forward_pass():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Reused().double()
    found = partition.split(network, BOX)
    assert len(found) > 40
    points = torch.from_numpy(found.cells.centre)
    values = np.einsum("nok,nk->no", found.maps, homogeneous(found.cells.centre))
    assert values == pytest.approx(network(points).detach().numpy(), abs=1e-12)


def test_euler_holds_for_a_hundred_thousand_regions():
    found = partition.split(mlp(2, 200, 200, 200, 1, rng=np.random.default_rng(0)), BOX)
    ends = found.cells.edges()[0].reshape(-1, 2)
    pairs = cKDTree(ends).query_pairs(1e-10, output_type="ndarray")
    graph = coo_array((np.ones(len(pairs)), pairs.T), shape=(len(ends), len(ends)))
    corners, same = connected_components(graph, directed=False)
    edges = np.unique(np.sort(same.reshape(-1, 2), 1) @ [corners, 1])
    assert len(found) > 100_000
    assert corners - len(edges) + len(found) == 1
    assert found.cells.area.sum() == pytest.approx(16, rel=1e-9)
    assert found.cells.area.min() > 0


def largest(functions: np.ndarray) -> nn.Sequential:
    """The maximum of affine functions (k, 3), k = 4 or 9, as one window of a max pooling."""
    side = int(np.sqrt(len(functions)))
    network = nn.Sequential(
        nn.Linear(2, len(functions)), nn.Unflatten(1, (1, side, side)), nn.MaxPool2d(side), nn.Flatten()
    )
    network[0].weight.data, network[0].bias.data = torch.from_numpy(functions[:, :2]), torch.from_numpy(functions[:, 2])
    return network


@pytest.mark.parametrize(("functions", "regions"), [(4, (3, 4)), (9, (4, 7))])
@pytest.mark.parametrize("seed", range(6))
def test_a_maximum_has_one_region_for_each_function_on_the_upper_convex_hull(functions, regions, seed):
    drawn = np.random.default_rng(seed).standard_normal((functions, 3))
    hull = ConvexHull(drawn)
    upper = np.unique(hull.simplices[hull.equations[:, 2] > 1e-9])
    found = partition.split(largest(drawn), HUGE)
    assert len(found) == len(upper)
    assert regions[0] - 1 <= len(found) <= functions
    assert np.unique(found.codes(0)).tolist() == upper.tolist()
    assert len(np.unique(found.distinct_maps())) == len(found)
    assert found.cells.area.sum() == pytest.approx(4e8, rel=1e-9)


@pytest.mark.parametrize("functions", [4, 9])
@pytest.mark.parametrize("seed", range(6))
def test_in_a_box_the_winners_of_a_maximum_are_those_of_linear_programmes_and_of_a_grid(functions, seed):
    drawn = np.random.default_rng(seed).standard_normal((functions, 3))
    found = partition.split(largest(drawn), BOX)
    wins = []
    for k in range(functions):  # the widest margin by which function k wins in the box
        others = np.delete(drawn, k, 0) - drawn[k]
        rows = np.concatenate([others[:, :2], np.ones((functions - 1, 1))], 1)
        best = linprog([0, 0, -1], rows, -others[:, 2], bounds=[(-2, 2), (-2, 2), (None, None)])
        wins += [k] * (-best.fun > 1e-9)
    assert sorted(found.codes(0)[:, 0].tolist()) == wins
    axis = np.linspace(-2, 2, 401)
    points = homogeneous(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2))
    winner = (points @ drawn.T).argmax(1)
    share = np.bincount(winner, minlength=functions) / len(points)
    assert (found.cells.area / 16) == pytest.approx(share[found.codes(0)[:, 0]], abs=0.01)


def test_the_lines_of_a_maximum_are_where_its_winner_changes_each_once():
    drawn = np.random.default_rng(0).standard_normal((9, 3))
    found = partition.split(largest(drawn), BOX)
    segments = found.segments(0)
    top = np.sort(homogeneous(segments.mean(1)) @ drawn.T, 1)
    assert np.abs(top[:, -1] - top[:, -2]).max() < 1e-12
    outlines = [np.linalg.norm(np.diff(found.cells.edges()[0], axis=1), axis=2).sum()]
    assert 2 * partition.length(segments) + 16 == pytest.approx(outlines[0])  # every line borders two regions


class Pooled(nn.Module):
    """Two convolutions, each with ReLU and overlapping maximum windows, which share their zeros."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.first(x)), 3, stride=2, padding=1)
        return self.head(F.max_pool2d(F.relu(self.second(x)), 2).view(x.size(0), -1))


def test_regions_behind_pooling_differ_in_relu_bits_or_winners_and_many_share_a_map():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Pooled().double()
    plane = random_plane((1, 8, 8))
    found = partition.split(network, ((-0.2, 0.2), (-0.2, 0.2)), plane)
    assert len(np.unique(found.packed, axis=0)) == len(found)
    assert found.cells.area.sum() == pytest.approx(0.16, rel=1e-9)
    axis = np.linspace(-0.1999, 0.1999, 300)
    points = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    first = network.first(lifted(plane, points))
    pooled, winner = F.max_pool2d(first.relu(), 3, 2, 1, return_indices=True)
    second = network.second(pooled)
    pooled, last = F.max_pool2d(second.relu(), 2, return_indices=True)
    winner, last = (
        torch.where(value > 0, place, -1)
        for value, place in ((F.max_pool2d(first.relu(), 3, 2, 1), winner), (pooled, last))
    )
    parts = [(first > 0).flatten(1), winner.flatten(1), (second > 0).flatten(1), last.flatten(1)]
    seen = len(np.unique(torch.cat(parts, 1).numpy(), axis=0))
    assert 0.8 * len(found) < seen <= len(found)
    maps = len(np.unique(found.distinct_maps()))
    assert maps < len(found)
    rounded = np.unique(found.maps.reshape(len(found), -1).round(9), axis=0)
    assert maps == pytest.approx(len(rounded), abs=3)  # a value may lie where rounding turns


def test_equal_entries_of_a_maximum_cut_nothing():
    drawn = np.random.default_rng(1).standard_normal((4, 3))
    doubled = np.concatenate([drawn, drawn[:2], drawn[1:4]])
    assert len(partition.split(largest(doubled), BOX)) == len(partition.split(largest(drawn), BOX))


class Calls(nn.Module):
    """A convolution, some operations on its maps (n, 2, 4, 4), and a head for what they give."""

    def __init__(self, operation, head: int):
        super().__init__()
        self.first, self.operation, self.head = nn.Conv2d(1, 2, 3, padding=1), operation, nn.Linear(head, 2)
        self.parameter, self.matrix = nn.Parameter(torch.randn(2, 4, 4)), nn.Parameter(torch.randn(4, 3))
        self.prelu, self.many = nn.PReLU(), nn.PReLU(2)
        self.many.weight.data = torch.tensor([0.3, -0.4])
        self.up, self.pad, self.back = nn.Upsample(scale_factor=2), nn.ZeroPad2d(1), nn.ConvTranspose2d(2, 1, 2)
        self.line, self.six, self.tanh = nn.Conv1d(2, 3, 3), nn.ReLU6(), nn.Hardtanh(-0.2, 0.5)

    def forward(self, x):
        return self.head(self.operation(self, self.first(x)))


def flat(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1)


OPERATIONS = {
    "view by size": (lambda n, x: F.relu(x).view(x.size(0), -1), 32),
    "view by shape": (lambda n, x: F.relu(x).view(x.shape[0], 2 * x.shape[2] * x.shape[3]), 32),
    "reshape": (lambda n, x: torch.relu(x).reshape(x.shape[0], 32), 32),
    "torch.flatten": (lambda n, x: torch.flatten(x.relu(), 1), 32),
    "times and over a number": (lambda n, x: flat(F.relu(2 * x) / 3 - 1), 32),
    "plus a parameter": (lambda n, x: flat(F.relu(x + n.parameter)), 32),
    "times a parameter": (lambda n, x: flat(F.relu(x * n.parameter)), 32),
    "times a matrix": (lambda n, x: flat(F.relu(x @ n.matrix)), 24),
    "sum and mean": (lambda n, x: F.relu(x.sum(2)).mean(2), 2),
    "abs": (lambda n, x: flat(x.abs() + torch.abs(x - 1) + abs(x + 1)), 32),
    "clamp": (lambda n, x: flat(x.clamp(-0.3, 0.4) + torch.clamp(x, min=0.1) + x.clamp(max=0.2)), 32),
    "maximum of two": (lambda n, x: flat(torch.maximum(x, 0.5 - x) + torch.max(x, n.parameter)), 32),
    "minimum of two": (lambda n, x: flat(torch.minimum(x[:, :1], x[:, 1:])), 16),
    "amax and amin": (lambda n, x: torch.cat([x.amax((2, 3)), x.amin(1).flatten(1)], 1), 18),
    "F.max_pool2d": (lambda n, x: flat(F.max_pool2d(F.relu(x), 2)), 8),
    "overlapping padded maxima": (lambda n, x: flat(F.max_pool2d(x, 3, stride=2, padding=1)), 8),
    "F.max_pool1d": (lambda n, x: flat(F.max_pool1d(x.flatten(2), 4)), 8),
    "F.relu": (lambda n, x: flat(F.relu(x)), 32),
    "leaky": (lambda n, x: flat(F.leaky_relu(x, 0.2) + F.leaky_relu(x - 1)), 32),
    "PReLU": (lambda n, x: flat(n.prelu(x)), 32),
    "PReLU by channel": (lambda n, x: flat(n.many(x)), 32),
    "ReLU6": (lambda n, x: flat(n.six(3 * x) + F.relu6(5 * x)), 32),
    "Hardtanh": (lambda n, x: flat(n.tanh(x) + F.hardtanh(x)), 32),
    "ConvTranspose2d": (lambda n, x: flat(F.relu(n.back(F.relu(x)))), 25),
    "ZeroPad2d": (lambda n, x: flat(F.max_pool2d(n.pad(x), 3)), 8),
    "nearest Upsample": (lambda n, x: flat(F.relu(n.up(x) + F.interpolate(x, scale_factor=2))), 128),
    "Conv1d": (lambda n, x: flat(F.relu(n.line(x.flatten(2)))), 42),
    "Identity and Dropout": (lambda n, x: flat(F.relu(F.dropout(x, training=n.training))), 32),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_give_the_values_of_the_network_in_every_region(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Calls(*OPERATIONS[name]).double().eval()
    plane = random_plane((1, 4, 4), seed=3)
    found = partition.split(network, BOX, plane)
    assert len(found) > 5
    assert found.cells.area.sum() == pytest.approx(16, rel=1e-9)
    points = np.random.default_rng(0).uniform(-2, 2, (100, 2))
    with torch.no_grad():
        outputs = network(lifted(plane, points)).numpy()
    values = np.einsum("nok,nk->no", found.maps[containing(found, points)], homogeneous(points))
    assert np.abs(values - outputs).max() < 1e-9 * np.abs(outputs).max()
    assert len(np.unique(found.packed, axis=0)) == len(found)


class Product(nn.Module):
    def __init__(self, operation):
        super().__init__()
        self.first, self.operation = nn.Linear(2, 4), operation

    def forward(self, x):
        return self.operation(self.first(x))


REFUSED = {
    "mul": lambda x: x * x.relu(),
    "mul_2": lambda x: (2 * x) * (3 * x),
    "matmul": lambda x: x.unsqueeze(1) @ x.unsqueeze(2),
    "truediv": lambda x: 1 / x,
    "sigmoid": lambda x: x.sigmoid(),
    "softmax": lambda x: F.softmax(x, 1),
    "gelu": F.gelu,
    "layer_norm": lambda x: F.layer_norm(x, (4,)),
    "silu": F.silu,
    "clamp": lambda x: x.clamp(max=x[:, :1]),
    "sum_1": lambda x: x.sum(),
    "amax": lambda x: x.relu().amax(0),
    "dropout": lambda x: F.dropout(x, training=True),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_piecewise_affine_in_one_input_is_refused_by_its_name(name):
    with pytest.raises(CompanionError, match=f"Layer {name} "):
        partition.split(Product(REFUSED[name]), BOX)


def test_a_node_of_relu6_draws_two_lines_and_has_three_codes():
    network = nn.Sequential(nn.Linear(2, 1), nn.ReLU6()).double()
    network[0].weight.data, network[0].bias.data = torch.tensor([[6.0, 0.0]]).double(), torch.tensor([3.0]).double()
    found = partition.split(network, BOX)
    assert sorted(found.codes(0)[:, 0].tolist()) == [0, 1, 2]
    assert sorted(found.lines(0)[0][:, 0, 0].tolist()) == [-0.5, 0.5]


@pytest.mark.parametrize("seed", range(3))
def test_a_network_of_one_logit_decides_where_it_is_zero_as_two_logits_do(seed):
    one = mlp(2, 8, 8, 1, rng=np.random.default_rng(seed))
    points = torch.rand(200_000, 2, generator=torch.Generator().manual_seed(0)).double() * 4 - 2
    one[4].bias.data -= one(points).median().detach()
    two = copy.deepcopy(one)
    two[4] = nn.Linear(8, 2).double()
    two[4].weight.data = torch.cat([torch.zeros(1, 8), one[4].weight.data])
    two[4].bias.data = torch.cat([torch.zeros(1), one[4].bias.data])
    single, double = (partition.split(network, BOX) for network in (one, two))
    assert len(single.boundary) > 0
    assert one(torch.from_numpy(single.boundary.reshape(-1, 2))).abs().max() < 1e-8
    assert partition.length(single.boundary) == pytest.approx(partition.length(double.boundary))
    winners = [partition.winner(found.maps, found.cells) for found in (single, double)]
    assert (winners[0] == winners[1]).all()
    shifted = copy.deepcopy(one)
    shifted[4].bias.data += 0.5
    share = ((one(points) > 0) != (shifted(points) > 0)).double().mean().item()
    both = partition.split(partition.Pair(one, shifted), BOX)
    assert partition.decided_otherwise(both) == pytest.approx(share, abs=0.005)


@pytest.mark.parametrize("half", [1e3, 1e6, 1e7, 1e8, 1e9, 1e10, 1e12, 1e15])
@pytest.mark.parametrize("seed", range(3))
def test_a_wide_window_has_all_regions_or_is_refused(half, seed):
    network = mlp(2, 16, 1, rng=np.random.default_rng(seed))
    try:
        found = partition.split(network, ((-half, half), (-half, half)))
    except CompanionError as error:
        assert half > 1e6 and "too wide" in str(error)
    else:
        lines = np.concatenate([network[0].weight.data.numpy(), network[0].bias.data.numpy()[:, None]], 1)
        pairs = [np.cross(a, b) for k, a in enumerate(lines) for b in lines[:k]]
        inside = sum(max(abs(x), abs(y)) < half * abs(z) for x, y, z in pairs)
        corners = half * np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]])
        crossing = np.ptp(np.sign(homogeneous(corners) @ lines.T), axis=0) > 0
        assert len(found) == 1 + crossing.sum() + inside == len(np.unique(found.packed, axis=0))


def test_a_window_far_from_the_origin_is_divided_as_if_it_were_there():
    network = mlp(2, 16, 16, 2, rng=np.random.default_rng(0))
    moved = copy.deepcopy(network)
    shift = torch.tensor([1e6, -2e6]).double()
    moved[0].bias.data -= moved[0].weight.data @ shift
    near, far = partition.split(network, BOX), partition.split(moved, ((1e6 - 2, 1e6 + 2), (-2e6 - 2, -2e6 + 2)))
    assert len(near) == len(far)
    assert far.cells.area.sum() == pytest.approx(16, rel=1e-6)


@pytest.mark.parametrize("radius", [0.05, 0.3])
def test_local_complexity_is_that_of_a_window_around_each_centre(radius):
    network = mlp(2, 12, 12, 2, rng=np.random.default_rng(0))
    centres = torch.rand(20, 2, generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    together = partition.local_complexity(network, centres, radius)
    assert together["regions"].max() > 1
    for centre, regions, density in zip(centres.tolist(), together["regions"], together["density"], strict=True):
        found = partition.split(network, tuple((place - radius, place + radius) for place in centre))
        assert len(found) == regions
        assert partition.length(found.segments(0, 1)) / (2 * radius) ** 2 == pytest.approx(density, rel=1e-6)


def test_local_complexity_of_parallel_lines_is_their_density():
    network = nn.Sequential(nn.Linear(2, 200), nn.ReLU(), nn.Linear(200, 1)).double()
    network[0].weight.data = torch.tensor([[3.0, 4.0]]).double().expand(200, 2).clone()
    network[0].bias.data = torch.linspace(-50, 50, 201).double()[:-1]  # a line every 0.1
    found = partition.local_complexity(network, torch.tensor([[0.01, 0.02], [0.5, -0.3]]), 1.0)
    assert found["density"] == pytest.approx(10, rel=0.05)
    assert found["regions"] == pytest.approx(10 * 2.8 + 1, abs=1)


def test_local_complexity_in_planes_through_images_is_that_of_a_slice(monkeypatch):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = models.build("digits_cnn", channels=1, size=8, width=0.25).double().eval()
    stream = torch.Generator().manual_seed(0)
    images, directions = torch.randn(3, 1, 8, 8, generator=stream), partition.random_directions((1, 8, 8), 3, stream)
    gram = directions.flatten(2) @ directions.flatten(2).mT
    assert torch.allclose(gram, torch.eye(2).double().expand(3, 2, 2), atol=1e-12)
    monkeypatch.setattr(partition, "SURROUNDINGS", 128)  # two at once
    assert len(partition.local_complexity(network, images[:0], 0.2, directions[:0])["regions"]) == 0
    found = partition.local_complexity(network, images, 0.2, directions)
    for image, pair, regions in zip(images.double(), directions, found["regions"], strict=True):
        plane = (image, image + pair[0], image + pair[1])
        assert len(partition.split(network, ((-0.2, 0.2), (-0.2, 0.2)), plane)) == regions > 1


def test_three_kinds_of_centres_lie_where_they_are_named():
    network = mlp(2, 12, 12, 2, rng=np.random.default_rng(0))
    points = torch.randn(30, 2, generator=torch.Generator().manual_seed(1))
    found = partition.three_kinds(network, points, BOX, 500, torch.Generator().manual_seed(2))
    assert {name: tuple(centres.shape) for name, centres in found.items()} == dict.fromkeys(found, (500, 2))
    assert (found["data"][:, None] == points.double()).all(2).any(1).all()
    logits = network(found["boundary"])
    assert (logits[:, 0] - logits[:, 1]).abs().max() < 1e-9
    assert found["elsewhere"].abs().max() < 2
    assert found["elsewhere"].mean(0).abs().max() < 4 * 2 / np.sqrt(3 * 500)
    left = partition.split(network, BOX).boundary
    share = partition.length(left[left.mean(1)[:, 0] < 0]) / partition.length(left)
    assert (found["boundary"][:, 0] < 0).double().mean().item() == pytest.approx(share, abs=0.12)
    network[4].bias.data[0] += 1e3
    assert partition.three_kinds(network, points, BOX, 5, torch.Generator())["boundary"].shape == (0, 2)


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
        partition.split(models.build("vit_tiny"), BOX, random_plane((3, 32, 32)))


def test_a_network_of_other_inputs_needs_a_plane():
    for network in (mlp(3, 4, 1, rng=np.random.default_rng(0)), models.build("digits_cnn", channels=1, size=8)):
        with pytest.raises(ValueError, match=r"shape \(2,\): give `plane`"):
            partition.split(network, BOX)


def test_weights_that_are_not_finite_and_planes_without_directions_are_refused():
    network = mlp(2, 4, 1, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="two directions"):
        partition.split(network, BOX, tuple(torch.zeros(3, 2)))
    network[0].weight.data[0, 0] = torch.nan
    with pytest.raises(CompanionError, match="0.weight of the network is not finite"):
        partition.split(network, BOX)


@pytest.mark.parametrize("k", range(1, 9))
def test_generic_lines_make_as_many_cells_as_the_arrangement_formula_says(k):
    assert len(cut(generic(k))) == 1 + k + comb(k, 2)


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_lines_through_one_point_make_two_cells_each(k):
    angles = np.pi * (np.arange(k) + 0.3) / k
    assert len(cut(np.stack([np.cos(angles), np.sin(angles), 0 * angles], 1)[None], OFF_CENTRE)) == 2 * k


def clipped(polygon: list[np.ndarray], line: np.ndarray) -> list[np.ndarray]:
    """The part of a polygon where a line is positive, corner by corner."""
    heights, kept = [corner @ line[:2] + line[2] for corner in polygon], []
    for k, corner in enumerate(polygon):
        before, height = heights[k - 1], heights[k]
        if before * height < 0:
            kept.append(polygon[k - 1] + before / (before - height) * (corner - polygon[k - 1]))
        kept += [corner] if height > 0 else []
    return kept


@pytest.mark.parametrize("seed", range(4))
def test_pieces_and_their_order_are_those_of_cutting_all_cells_in_step_line_by_line(seed):
    cells = cut(generic(4, seed), BOX)
    lines = np.random.default_rng(100 + seed).standard_normal((len(cells), 9, 3))
    going = [
        (k, list(corners[:count])) for k, (corners, count) in enumerate(zip(cells.corners, cells.count, strict=True))
    ]
    turns = [
        [line for line in own if clipped(p, line) and clipped(p, -line)]
        for (_, p), own in zip(going, lines, strict=True)
    ]
    wanted = [one for one in going if not turns[one[0]]]
    going = [one for one in going if turns[one[0]]]
    turn = 0
    while going:
        halves = [(k, p, clipped(p, turns[k][turn]), clipped(p, -turns[k][turn])) for k, p in going]
        going = [(k, p) for k, p, *sides in halves if not all(sides)]
        going += [(k, half) for side in (0, 1) for k, _, *sides in halves if all(sides) for half in [sides[side]]]
        turn += 1
        wanted += [one for one in going if len(turns[one[0]]) == turn]
        going = [one for one in going if len(turns[one[0]]) > turn]
    pieces, parent, positive = partition.subdivide(cells, lines, 0)
    assert parent.tolist() == [k for k, _ in wanted]
    assert pieces.count.tolist() == [len(p) for _, p in wanted]
    centres = np.array([np.mean(p, axis=0) for _, p in wanted])
    assert pieces.centre == pytest.approx(centres, abs=1e-12)
    assert (positive == (np.einsum("nuk,nk->nu", lines[parent], homogeneous(centres)) > 0)).all()


def test_lines_along_edges_and_through_corners_make_no_slivers():
    lines = np.array(
        [[[1, 0, 0], [0, 1, 0], [1, 1, 0], [1, -1, 0], [1, 0, 2], [0, 1, -2], [2, 1, 2], [1, 1, -4]]], float
    )
    cells = cut(lines, BOX)  # axes, diagonals; two sides; from a corner to the middle of the top; past a corner
    assert cells.area.sum() == pytest.approx(16, rel=1e-12)
    assert cells.area.min() > 0.1
    again, parent, _ = partition.subdivide(cells, np.repeat(lines, len(cells), 0), 99)
    assert parent.tolist() == list(range(len(cells)))
    assert (again.corners == cells.corners).all()


@pytest.mark.parametrize("k", [1, 3, 8])
def test_parallel_lines_make_one_more_cell_than_lines(k):
    lines = np.tile([3.0, -4.0, 0.0], (1, k, 1))
    lines[0, :, 2] = np.linspace(-1, 1, k)
    assert len(cut(lines, OFF_CENTRE)) == k + 1


def test_scaled_and_flipped_copies_of_a_line_make_no_slivers():
    lines = generic(5)
    copies = np.concatenate([lines, 3.7 * lines[:, :1], -2 * lines[:, 1:2]], 1)
    assert len(cut(lines)) == len(cut(copies)) == 16


def test_more_lines_than_a_cell_has_corners_keep_area_and_orientation():
    cells = cut(generic(60), OFF_CENTRE)
    assert cells.area.sum() == pytest.approx(16, rel=1e-12)
    assert (cells.area > 0).all()
    assert cells.count.max() > 6


def test_cells_are_on_one_side_of_every_line():
    lines = generic(30)
    cells = cut(lines, OFF_CENTRE)
    height = cells.corners @ lines[0, :, :2].T + lines[0, :, 2]
    assert ((height > -1e-8).all(1) | (height < 1e-8).all(1)).all()


def test_edges_carry_the_line_that_drew_them():
    lines = generic(20)
    ends, labels, _ = cut(lines, OFF_CENTRE).edges()
    inner = labels >= 0
    drawn = lines[0, labels[inner]]
    height = (ends[inner] * drawn[:, None, :2]).sum(2) + drawn[:, 2:]
    assert np.abs(height).max() < 1e-9
    sides = {-1: (1, -1.0), -2: (0, 2.0), -3: (1, 3.0), -4: (0, -2.0)}
    for label, (axis, value) in sides.items():
        assert np.abs(ends[labels == label][:, :, axis] - value).max() < 1e-12


def test_each_cell_is_cut_by_its_own_lines_alone():
    two = partition.subdivide(partition.rectangle(OFF_CENTRE), np.array([[[1.0, 0, 0]]]), 0)[0]
    own = np.array([[[0, 1.0, -1]], [[1.0, 0, 9]]])  # crosses the first cell; passes outside both
    pieces, parent, positive = partition.subdivide(two, own, 1)
    assert sorted(zip(parent.tolist(), positive[:, 0].tolist(), strict=True)) == [(0, False), (0, True), (1, True)]
    assert pieces.area[parent == 1] == pytest.approx(8)


def test_a_function_that_is_rounding_noise_draws_no_line():
    lines = np.array([[[1.0, 2.0, 0.5], [1e-17, -1e-17, 1e-18], [0, 0, 0]]])
    assert len(cut(lines, OFF_CENTRE)) == 2
    positive = partition.subdivide(partition.rectangle(OFF_CENTRE), lines, 0)[2]
    assert positive.tolist() == [[True, False, False], [False, False, False]]


@pytest.mark.parametrize("window", [((0, 0), (0, 1)), ((1, 0), (0, 1)), ((0, np.nan), (0, 1)), ((0, 1),)])
def test_a_window_without_area_is_refused_in_a_sentence(window):
    with pytest.raises(ValueError, match="low < high"):
        partition.rectangle(window)


def test_a_square_bends_at_its_corners_and_not_at_a_joint():
    found = np.unique(partition.bends(SQUARE, 1e-9).round(9), axis=0)
    assert found.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert partition.length(SQUARE) == 4
    assert len(partition.bends(SQUARE[:1], 1e-9)) == len(partition.bends(SQUARE[:0], 1e-9)) == 0


def test_distances_from_segments_are_those_of_geometry():
    points = np.array([[0.5, -1], [2, 2], [0.5, 0.5], [1, 0.2]])
    assert partition.distance(points, SQUARE) == pytest.approx([1, np.sqrt(2), 0.5, 0])
    assert np.isinf(partition.distance(points, SQUARE[:0])).all()


def test_samples_stand_for_the_whole_length_and_a_shift_moves_what_it_moves():
    points, weight = partition.sampled(SQUARE, 0.01)
    assert weight.sum() == pytest.approx(4)
    assert partition.distance(points, SQUARE).max() < 1e-12
    assert partition.moved_length(SQUARE, SQUARE, 0.01) == 0
    assert partition.moved_length(SQUARE, SQUARE + [0.2, 0], 0.01) == pytest.approx(2 + 2 * 0.2, abs=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_deep_lines_and_the_boundary_bend_only_on_earlier_lines(seed):
    found = partition.split(mlp(2, 12, 12, 12, 2, rng=np.random.default_rng(seed)), BOX)
    earlier = np.zeros((0, 2, 2))
    total = 0
    for layer in range(3):
        lines = found.lines(layer)
        bent = np.concatenate([partition.bends(line, 1e-9) for line in lines.values()])
        if layer == 0:
            assert len(bent) == 0
        elif len(bent):
            assert partition.distance(bent, earlier).max() < 1e-8
        total += len(bent)
        earlier = np.concatenate([earlier, *lines.values()])
    whole = partition.level_set(found, 0, 1)
    assert total > 20
    if len(bent := partition.bends(whole, 1e-9)):
        assert partition.distance(bent, earlier).max() < 1e-8


def test_a_bend_off_every_earlier_line_would_be_seen():
    found = partition.split(mlp(2, 12, 12, 1, rng=np.random.default_rng(0)), BOX)
    bent = np.concatenate([partition.bends(line, 1e-9) for line in found.lines(1).values()])
    earlier = np.concatenate(list(found.lines(0).values()))
    assert partition.distance(bent + 0.01, earlier).max() > 1e-3


def test_the_cross_has_four_branches():
    boundary = partition.split(cross(AXES, [1, 1, -1, -1]), ((-5, 5), (-5, 5))).boundary
    assert partition.branches(boundary, 4.0) == 4


def test_nothing_changes_if_nothing_is_pruned():
    network = mlp(2, 8, 8, 2, rng=np.random.default_rng(0))
    assert partition.change(network, copy.deepcopy(network), BOX) == {
        "maps": 0,
        "codes": 0,
        "decision": 0,
        "boundary": 0,
    }


def test_changes_of_a_network_with_known_maps():
    before = cross(AXES, [1, 1, -1, -1])
    after = copy.deepcopy(before)
    after[2].weight.data *= 2  # maps double, lines and decisions stay
    assert partition.change(before, after, BOX) == pytest.approx({"maps": 1, "codes": 0, "decision": 0, "boundary": 0})
    dropped = copy.deepcopy(before)
    dropped[0].weight.data[3] = 0
    found = partition.change(before, dropped, BOX)
    assert found["decision"] == pytest.approx(0.25)  # T8 on the exact partition
    assert found["codes"] == 0  # what is left of the lines stays where it was
    assert found["maps"] == pytest.approx(0.5 / np.sqrt(2))


def test_the_overlay_decides_otherwise_where_samples_do():
    rng = np.random.default_rng(1)
    first, second = mlp(2, 8, 8, 3, rng=rng), mlp(2, 8, 8, 3, rng=rng)
    points = torch.rand(200_000, 2, generator=torch.Generator().manual_seed(0)).double() * 4 - 2
    share = (first(points).argmax(1) != second(points).argmax(1)).double().mean().item()
    both = partition.split(partition.Pair(first, second), BOX)
    assert partition.decided_otherwise(both) == pytest.approx(share, abs=0.005)
    assert isinstance(partition.Pair(first, second), nn.Module)
