"""Residual networks for small images: He et al.'s of depth 6n + 2, and pre-activation bottlenecks."""

from torch import Tensor, nn
from torch.nn import functional as F


class PadShortcut(nn.Module):
    """Option A of He et al. 2016: every `stride`-th pixel, and zero channels in equal number before and after."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.stride, self.before, self.after = stride, (outputs - inputs) // 2, (outputs - inputs + 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN, plus the shortcut, then ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Identity()
        if (inputs, stride) != (outputs, 1) and shortcut == "A":
            self.downsample = PadShortcut(inputs, outputs, stride)
        elif (inputs, stride) != (outputs, 1):
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.downsample(x))


class CifarResNet(nn.Module):
    """ResNet of depth 6n + 2 in three stages, with `blocks` = n a stage (He et al. 2016, section 4.2)."""

    def __init__(self, blocks: int, classes: int, channels: int = 3, shortcut: str = "A", width: float = 1.0):
        super().__init__()
        widths = [max(1, round(stage * width)) for stage in (16, 16, 32, 64)]
        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        for stage in (1, 2, 3):
            first = BasicBlock(widths[stage - 1], widths[stage], 1 if stage == 1 else 2, shortcut)
            others = [BasicBlock(widths[stage], widths[stage], 1, shortcut) for _ in range(blocks - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(first, *others))
        self.fc = nn.Linear(widths[3], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.fc(x.mean((2, 3)))


class PreActBottleneck(nn.Module):
    """BN-ReLU-conv three times, 1x1, 3x3 and 1x1, plus the shortcut (He et al. 2016, identity mappings)."""

    def __init__(self, inputs: int, planes: int, outputs: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.downsample = nn.Identity()
        if (inputs, stride) != (outputs, 1):
            self.downsample = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.bn1(x)))
        y = self.conv2(F.relu(self.bn2(y)))
        return self.conv3(F.relu(self.bn3(y))) + self.downsample(x)


class PreActResNet(nn.Module):
    """Pre-activation ResNet of depth 9n + 2 in three stages, with `blocks` = n a stage."""

    def __init__(self, blocks: int, classes: int, channels: int = 3, width: float = 1.0):
        super().__init__()
        planes = [max(1, round(stage * width)) for stage in (16, 32, 64)]
        self.conv1 = nn.Conv2d(channels, planes[0], 3, 1, 1, bias=False)
        inputs = planes[0]
        for stage in (0, 1, 2):
            outputs = 4 * planes[stage]
            first = PreActBottleneck(inputs, planes[stage], outputs, 1 if stage == 0 else 2)
            others = [PreActBottleneck(outputs, planes[stage], outputs, 1) for _ in range(blocks - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(first, *others))
            inputs = outputs
        self.bn1 = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))
