"""Paper 2: the sweep of single layers against the straightforward loop, and decompositions against tensorly."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import tensorly
import torch
from tensorly.cp_tensor import CPTensor, cp_to_tensor
from tensorly.decomposition import parafac, tensor_train, tucker
from torch import Tensor, nn

from lib import data, models
from lib.data import Data, Split, batches, normalise
from lib.provenance import CompanionError
from lib.truncation import relative_error, sweep, truncate
from lib.truncation.forms import ORDER, cp_als, decompose, ranks_at
from lib.truncation.measures import MODES, applicable_cuts, cut_svd
from tests.bench import Line, alternated, trials

BATCH, IMAGES, EVERY = 50, 400, 6  # every sixth layer of ResNet-20
SHARES = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4)  # of the largest rank of a cut
CP_ITERATIONS = 5
LOOP = f"torch {torch.__version__}: the whole network for each kernel"


def network() -> tuple[nn.Module, Data, Split, str]:
    """A ResNet-20 and test images: public weights and CIFAR-10 where they are here, or else random ones."""
    try:
        model, (mean, std) = models.public("resnet20", "cifar10")
        dataset = replace(data.load("cifar10"), mean=mean, std=std)
        return (
            model.eval(),
            dataset,
            Split(dataset.test.images[:IMAGES], dataset.test.labels[:IMAGES]),
            "public weights",
        )
    except CompanionError:
        dataset = trials.random_cifar(IMAGES)
        return models.build("resnet20").eval(), dataset, dataset.train, "random weights and images"


def grid(kernel: Tensor) -> list[tuple[str, int]]:
    """Every applicable cut at six ranks, or at all of them where it has fewer."""
    points = []
    for cut in applicable_cuts(kernel.shape):
        largest = len(cut_svd(kernel, cut).values)
        ranks = {round(share * largest) for share in SHARES} if largest > len(SHARES) else range(1, largest)
        points += [(cut, rank) for rank in sorted(ranks)]
    return points


@torch.inference_mode()
def straightforward(model: nn.Module, layer: str, points: list, split: Split, dataset: Data) -> list[int]:
    """Wrong images with every kernel: an SVD a rank, the network run from its first layer to its last."""
    weight, wrong = model.get_submodule(layer).weight, []
    dense = weight.detach().clone()
    for cut, rank in points:
        weight.data.copy_(truncate(dense, cut, rank))
        outputs = [(model(normalise(x, dataset.mean, dataset.std)), y) for x, y in batches(split, BATCH)]
        wrong.append(sum((scores.argmax(1) != y).sum().item() for scores, y in outputs))
    weight.data.copy_(dense)
    return wrong


def swept(model: nn.Module, layer: str, points: list, split: Split, dataset: Data) -> list[int]:
    """The same numbers by `sweep.compare`."""
    kernel = sweep.kernel(model.get_submodule(layer))
    found = {cut: cut_svd(kernel, cut) for cut in dict(points)}
    kernels = [kernel, *[found[cut].kernel(rank).to(kernel) for cut, rank in points]]
    return sweep.compare(model, layer, kernels, split, dataset, BATCH)["wrong"].sum(1)[1:].tolist()


def single_layers() -> Iterator[Line]:
    """One layer after another replaced by truncated kernels: the sweep against running the whole network each time."""
    torch.set_num_threads(1)
    model, dataset, split, origin = network()
    layers = sweep.layer_names(model)
    chosen = layers[::EVERY]
    total, difference, count = [0.0, 0.0], 0, 0
    for layer in chosen:
        points = grid(sweep.kernel(model.get_submodule(layer)))
        found, seconds = [], []
        for call in (swept, straightforward):
            start = time.process_time()
            found.append(call(model, layer, points, split, dataset))
            seconds.append(time.process_time() - start)
        count += len(points)
        total = [before + more for before, more in zip(total, seconds, strict=True)]
        difference = max(difference, *[abs(one - other) for one, other in zip(*found, strict=True)])
        yield Line(f"{layer}, {len(points)} kernels: the sweep against the loop", seconds[1] / seconds[0], "x")
    part = f"{len(chosen)} of {len(layers)} layers of ResNet-20 ({origin}), {count} kernels"
    yield Line(f"{part}: images swept", count * len(split) / total[0], "images/s")
    yield Line("   the straightforward loop", count * len(split) / total[1], "images/s", peer=LOOP)
    yield Line("   the sweep against it", total[1] / total[0], "x", ">", 2, LOOP)
    yield Line("   largest difference of the numbers of wrong images", difference, "images", "<", 1)


def against_tensorly(
    what: str, peer: str, kernel: Tensor, ours: Callable[[], Tensor], theirs: Callable[[], Tensor], bound: float
) -> Iterator[Line]:
    """The ratio of two times, and the difference of two relative errors, negative where ours errs less."""
    errors = [relative_error(kernel, call()) for call in (ours, theirs)]
    times = alternated(ours, theirs, repeats=3)
    yield Line(what, 1e3 * times[0], "ms")
    yield Line("   against tensorly", times[1] / times[0], "x", ">", bound, f"tensorly {tensorly.__version__}: {peer}")
    yield Line(f"   its relative error ({errors[0]:.4f}) minus tensorly's", errors[0] - errors[1], "", "<", 1e-4)


def tensorly_tucker(kernel: Tensor, ranks: tuple[int, ...], iterations: int) -> Tensor:
    return tucker(kernel, ranks, n_iter_max=iterations, tol=0).to_tensor()


def tensorly_iterations(kernel: Tensor, ranks: tuple[int, ...], error: float, most: int = 100) -> int:
    """The fewest iterations with which tensorly's Tucker form errs no more: one sweep of each does not err alike."""
    for count in range(1, most):
        if relative_error(kernel, tensorly_tucker(kernel, ranks, count)) <= error + 1e-6:
            return count
    return most


def decompositions() -> Iterator[Line]:
    """Tensor train, Tucker and CP forms of random kernels against tensorly's at equal error."""
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(0)
    modes = [MODES.index(mode) for mode in ORDER]
    with tensorly.backend_context("pytorch"):
        for channels in (64, 256):
            shape = (channels, channels, 3, 3)
            kernel = torch.randn(shape, generator=random, dtype=torch.float64)
            bonds, ranks = ranks_at(shape, "tt", 0.5), ranks_at(shape, "tucker", 0.5)
            name = f"{channels} x {channels} x 3 x 3"
            yield from against_tensorly(
                f"tensor train of {name}",
                "tensor_train",
                kernel,
                lambda kernel=kernel, bonds=bonds: decompose(kernel, "tt", bonds).kernel(),
                lambda kernel=kernel, bonds=bonds: (
                    tensor_train(kernel.permute(modes), (1, *bonds, 1)).to_tensor().permute(0, 3, 1, 2)
                ),
                1,
            )
            iterations = tensorly_iterations(
                kernel, ranks, relative_error(kernel, decompose(kernel, "tucker", ranks).kernel())
            )
            yield from against_tensorly(
                f"Tucker of {name}",
                f"tucker, {iterations} iterations to the same error",
                kernel,
                lambda kernel=kernel, ranks=ranks: decompose(kernel, "tucker", ranks).kernel(),
                lambda kernel=kernel, ranks=ranks, count=iterations: tensorly_tucker(kernel, ranks, count),
                1,
            )
            start = [torch.randn(size, channels, generator=random, dtype=torch.float64) for size in shape]

            def theirs(kernel: Tensor = kernel, start: list = start) -> Tensor:
                rank = start[0].shape[1]
                first = CPTensor((torch.ones(rank).double(), [factor.clone() for factor in start]))
                return cp_to_tensor(parafac(kernel, rank, init=first, n_iter_max=CP_ITERATIONS, tol=0))

            yield from against_tensorly(
                f"CP of {name}, {channels} terms, {CP_ITERATIONS} iterations",
                "parafac",
                kernel,
                lambda kernel=kernel, start=start: cp_als(kernel, start, CP_ITERATIONS, 0.0).kernel(),
                theirs,
                5,
            )


BENCHMARKS = (single_layers, decompositions)
