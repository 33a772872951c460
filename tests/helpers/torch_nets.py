"""The shared architectures in PyTorch, for comparison with d3jax's.

They are written from their published descriptions, with the parameter names that published files
use. The caller chooses the sizes. Sources:

- PreActResNet18: He et al. 2016, in the form that is usual in the field.
- WideResNet: Zagoruyko & Komodakis 2016.
- VGG19-BN: Simonyan & Zisserman 2015, in torchvision's layout.
- ViT: Dosovitskiy et al. 2021, in torchvision's layout.
"""

import torch
from torch import nn


class PreActBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1, self.conv1 = (
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        )
        self.bn2, self.conv2 = (
            nn.BatchNorm2d(outputs),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        )
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x):
        activated = torch.relu(self.bn1(x))
        beside = self.shortcut(activated) if hasattr(self, "shortcut") else x
        return self.conv2(torch.relu(self.bn2(self.conv1(activated)))) + beside


class PreActResNet18(nn.Module):
    def __init__(self, width, channels, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        inputs = width
        for stage in range(1, 5):
            outputs, blocks = width << (stage - 1), []
            for block in range(2):
                blocks.append(PreActBlock(inputs, outputs, 2 if stage > 1 and block == 0 else 1))
                inputs = outputs
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x):
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        return self.linear(x.mean((2, 3)))


class ResBlock(nn.Module):
    def __init__(self, inputs, width, stride, bottleneck):
        super().__init__()
        outputs = 4 * width if bottleneck else width
        shape = [(1, 1), (3, stride), (1, 1)] if bottleneck else [(3, stride), (3, 1)]
        sizes = [inputs, *([width] * (len(shape) - 1)), outputs]
        self.count = len(shape)
        for i, (size, step) in enumerate(shape):
            conv = nn.Conv2d(sizes[i], sizes[i + 1], size, step, size // 2, bias=False)
            setattr(self, f"conv{i + 1}", conv)
            setattr(self, f"bn{i + 1}", nn.BatchNorm2d(sizes[i + 1]))
        self.downsample = None
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = torch.relu(y) if i < self.count else y
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """A ResNet of torchvision's layout, with the stem of a 7×7 convolution and max pooling."""

    def __init__(self, counts, bottleneck, width, channels, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 7, 2, 3, bias=False)
        self.bn1, self.maxpool = nn.BatchNorm2d(width), nn.MaxPool2d(3, 2, 1)
        inputs = width
        for stage, count in enumerate(counts):
            blocks = []
            for block in range(count):
                stride = 2 if stage and not block else 1
                blocks.append(ResBlock(inputs, width << stage, stride, bottleneck))
                inputs = (width << stage) * (4 if bottleneck else 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x):
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


class WideBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1, self.conv1 = (
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        )
        self.bn2, self.conv2 = (
            nn.BatchNorm2d(outputs),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        )
        self.convShortcut = (
            nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None
        )

    def forward(self, x):
        activated = torch.relu(self.bn1(x))
        beside = x if self.convShortcut is None else self.convShortcut(activated)
        return self.conv2(torch.relu(self.bn2(self.conv1(activated)))) + beside


class WideStage(nn.Module):
    def __init__(self, count, inputs, outputs, stride):
        super().__init__()
        self.layer = nn.Sequential(
            *(
                WideBlock(inputs if i == 0 else outputs, outputs, stride if i == 0 else 1)
                for i in range(count)
            )
        )

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    def __init__(self, depth, k, channels, classes):
        super().__init__()
        count, sizes = (depth - 4) // 6, [16, 16 * k, 32 * k, 64 * k]
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        for stage in range(1, 4):
            setattr(
                self,
                f"block{stage}",
                WideStage(count, sizes[stage - 1], sizes[stage], 2 if stage > 1 else 1),
            )
        self.bn1, self.fc = nn.BatchNorm2d(sizes[3]), nn.Linear(sizes[3], classes)

    def forward(self, x):
        x = torch.relu(self.bn1(self.block3(self.block2(self.block1(self.conv1(x))))))
        return self.fc(x.mean((2, 3)))


class VGG19BN(nn.Module):
    def __init__(self, width, channels, classes):
        super().__init__()
        layers, inputs = [], channels
        for multiple, count in ((1, 2), (2, 2), (4, 4), (8, 4), (8, 4)):
            for _ in range(count):
                layers += [
                    nn.Conv2d(inputs, multiple * width, 3, 1, 1),
                    nn.BatchNorm2d(multiple * width),
                    nn.ReLU(),
                ]
                inputs = multiple * width
            layers.append(nn.MaxPool2d(2))
        hidden = 64 * width
        self.features, self.avgpool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(inputs * 49, hidden),
            nn.ReLU(),
            nn.Dropout(0.0),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(0.0),
            nn.Linear(hidden, classes),
        )

    def forward(self, x):
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class EncoderBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.ln_1, self.self_attention = (
            nn.LayerNorm(width, eps=1e-6),
            nn.MultiheadAttention(width, heads, batch_first=True),
        )
        self.ln_2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.0), nn.Linear(4 * width, width)
        )

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.self_attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Encoder(nn.Module):
    def __init__(self, tokens, width, depth, heads):
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
        self.layers = nn.Sequential()
        for i in range(depth):
            self.layers.add_module(f"encoder_layer_{i}", EncoderBlock(width, heads))
        self.ln = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x):
        return self.ln(self.layers(x + self.pos_embedding))


class ViT(nn.Module):
    def __init__(self, side, patch, width, depth, heads, channels, classes):
        super().__init__()
        self.class_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.conv_proj = nn.Conv2d(channels, width, patch, patch)
        self.encoder = Encoder((side // patch) ** 2 + 1, width, depth, heads)
        self.heads = nn.Sequential()
        self.heads.add_module("head", nn.Linear(width, classes))

    def forward(self, x):
        x = self.conv_proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1)
        return self.heads(self.encoder(x)[:, 0])
