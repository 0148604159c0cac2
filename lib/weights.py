"""Weights on disk: safetensors of our own, public checkpoints of others, each checked before it is trusted."""

import hashlib
from http.client import HTTPException
from pathlib import Path

import safetensors.torch
import torch
import torchvision
from safetensors import SafetensorError
from torch import Tensor, nn

from lib.data import STATISTICS, Statistics
from lib.provenance import CompanionError, data_dir, unknown, write_atomically

CHENYAOFO_STATISTICS = ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761))  # those of its own training script
# Public ResNets by data set: shortcut, statistics of the images that they were trained on, place on GitHub.
AUTHORS = {
    "cifar10": ("A", STATISTICS["imagenet"], "akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models"),
    "cifar100": ("B", CHENYAOFO_STATISTICS, "chenyaofo/pytorch-cifar-models/releases/download/resnet"),
}
# By network and data set: file in DATA_DIR, file on GitHub, `tensor_digest`.
PUBLIC = {
    ("resnet20", "cifar10"): ("akamaster/resnet20-12fca82f.th", "resnet20-12fca82f.th", "545fa8b5a258bee4"),
    ("resnet56", "cifar10"): ("akamaster/resnet56-4bfd9763.th", "resnet56-4bfd9763.th", "0ff5908e066f14b1"),
    ("resnet20", "cifar100"): ("chenyaofo/cifar100_resnet20.pth", "cifar100_resnet20-23dac2f1.pt", "d7ed4a89f3a881b0"),
    ("resnet56", "cifar100"): ("chenyaofo/cifar100_resnet56.pth", "cifar100_resnet56-f2eff4c8.pt", "4336c899ec60d9d5"),
}
# Test images of 10,000 that each public checkpoint misclassifies, as its authors publish it.
PUBLISHED_WRONG = {
    ("resnet20", "cifar10"): 827,
    ("resnet56", "cifar10"): 661,
    ("resnet20", "cifar100"): 3117,
    ("resnet56", "cifar100"): 2737,
}


def save(model: nn.Module, path: Path | str) -> None:
    """Write a network's parameters and buffers as safetensors, whole or not at all."""
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    write_atomically(Path(path), safetensors.torch.save(state))


def load(model: nn.Module, path: Path | str) -> nn.Module:
    """Fill a network of the same shape with the weights that `save` wrote, and return it.

    Raises CompanionError, with the network untouched, for a file that is missing, damaged or of another network.
    """
    try:
        state = safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise CompanionError(f"The weights in {path} cannot be read ({error}): make them again.") from error
    if {key: value.shape for key, value in state.items()} != {k: v.shape for k, v in model.state_dict().items()}:
        raise CompanionError(f"{path} holds the weights of another network: build the network that was saved there.")
    model.load_state_dict(state)
    return model


def public_state(name: str, dataset: str) -> tuple[dict[str, Tensor], str, Statistics]:
    """The tensors of a public CIFAR ResNet under this house's names, its shortcut option, and its images' statistics.

    Read from DATA_DIR, or else fetched from its authors and kept there. Sources: akamaster/pytorch_resnet_cifar10
    (BSD 2-clause), chenyaofo/pytorch-cifar-models (BSD 3-clause).
    Raises CompanionError if there is no such checkpoint, or if it is damaged or cannot be fetched.
    """
    if (name, dataset) not in PUBLIC:
        raise unknown("public checkpoint", f"{name} on {dataset}", [" on ".join(key) for key in PUBLIC])
    shortcut, statistics, address = AUTHORS[dataset]
    file, remote, digest = PUBLIC[name, dataset]
    path = _fetched(data_dir() / file, f"https://github.com/{address}/{remote}")
    state = _read(path)
    state = state.get("state_dict", state)
    state = {key.removeprefix("module.").replace("linear.", "fc."): value for key, value in state.items()}
    if tensor_digest(state) != digest:
        raise _damaged(path)
    return state, shortcut, statistics


def imagenet_state(name: str) -> dict[str, Tensor]:
    """The tensors of torchvision's default ImageNet weights, from torch's own cache or fetched into it."""
    published = torchvision.models.get_model_weights(name).DEFAULT
    path = _fetched(Path(torch.hub.get_dir()) / "checkpoints" / Path(published.url).name, published.url)
    with path.open("rb") as file:
        if not hashlib.file_digest(file, "sha256").hexdigest().startswith(path.stem.split("-")[-1]):
            raise _damaged(path)
    return _read(path)


def tensor_digest(state: dict[str, Tensor]) -> str:
    """16 hex digits of the SHA-256 of a state's floating-point tensors by name, whatever file they came in."""
    digest = hashlib.sha256()
    for key in sorted(state):
        if state[key].is_floating_point():
            digest.update(key.encode() + b"\0" + state[key].contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _fetched(path: Path, url: str) -> Path:
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), progress=False)  # renames a temporary file at the end
        except (OSError, HTTPException) as error:
            raise CompanionError(
                f"{path} is missing and {url} could not be fetched ({error}): connect to the internet, "
                f"put that file there, or set DATA_DIR to where you have it."
            ) from error
    return path


def _read(path: Path) -> dict:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere in the unpickler
        raise _damaged(path) from error


def _damaged(path: Path) -> CompanionError:
    return CompanionError(
        f"{path} is damaged (not the weights its authors published): delete it so it is fetched anew."
    )
