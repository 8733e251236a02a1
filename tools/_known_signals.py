# SPDX-License-Identifier: Apache-2.0
"""Upsampling of known signals, for the studies known_signals_*.py: data, model and measure of tools/compare.py's runs.

The signal is a label map as one-hot vectors at the full size of its picture, embedded into more channels by a fixed
matrix with orthonormal rows, as a feature would hold it. Averaged down and brought back, it is compared with itself, so
nothing but the upsampler, and the small guide encoder that all share, is trained.
"""

import json
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.nn import functional as F

from sapa_mm.ops import feature_assembly
from sapa_mm.registry import DATASETS, METRICS, MODELS
from sapa_mm.upsamplers import BaseUpsampler, ColourAffiliation, build_upsampler

#: Widths of the boundary regions, in pixels: what has another label within so many rows and columns.
WIDTHS = (1, 2, 3, 5)
#: The width of the figures kept for each picture.
PICTURE_WIDTH = 3
QUANTILES = (5, 10, 25, 50, 75, 90, 95)
BINS = 200


# ---- data


@DATASETS.register_module()
class KnownSignals(torch.utils.data.Dataset):
    """Pictures with their label maps at full size.

    Two layouts: label maps, `images/SPLIT` and `annotations/SPLIT`, as tools/dataset_converters/camvid.py writes them,
    where 255 becomes the last label; or instances in COCO format, `images/SPLIT` and `annotations/SPLIT.json`, which
    become the labels 0 and 1.

    Args:
        data_root (str): Folder of the data.
        splits (dict[str, int]): Of each split, every how many pictures to take.
        num_classes (int): Number of labels, with that of unlabelled pixels.
        crop (int, optional): Side of a random square, mirrored at random. Defaults to None: the middle part of at most
            ``limit``, sides multiples of ``multiple``.
        limit (tuple[int, int]): Largest height and width without ``crop``. Defaults to (360, 480).
        multiple (int): Defaults to 8.
    """

    def __init__(self, data_root, splits, num_classes, crop=None, limit=(360, 480), multiple=8):
        self.root = Path(data_root)
        self.crop, self.limit, self.multiple = crop, limit, multiple
        self.metainfo = dict(num_classes=num_classes)
        self.items = []  # split, picture, label map or annotations
        for split, step in splits.items():
            instances = self.root / 'annotations' / f'{split}.json'
            if instances.exists():
                found = self._instances(split, instances)
            else:
                maps = self.root / 'annotations' / split
                pictures = sorted((self.root / 'images' / split).iterdir())
                found = [(split, path, maps / f'{path.stem}.png') for path in pictures]
            self.items += found[::step]

    def _instances(self, split, path):
        content = json.loads(path.read_text())
        of_picture = {}
        for annotation in content['annotations']:
            of_picture.setdefault(annotation['image_id'], []).append(annotation['segmentation'])
        return [
            (split, self.root / 'images' / split / picture['file_name'], of_picture.get(picture['id'], []))
            for picture in sorted(content['images'], key=lambda picture: picture['file_name'])
        ]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        split, path, source = self.items[i]
        image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        if isinstance(source, Path):
            labels = cv2.imread(str(source), cv2.IMREAD_UNCHANGED).astype(np.int64)
            labels[labels == 255] = self.metainfo['num_classes'] - 1
        else:
            from pycocotools import mask

            labels = np.zeros(image.shape[:2], np.int64)
            for part in source:
                labels |= mask.decode(part)
        if self.crop is None:
            size = [min(side, limit) // self.multiple * self.multiple for side, limit in zip(labels.shape, self.limit)]
            start = [(side - part) // 2 for side, part in zip(labels.shape, size)]
        else:
            # numpy's numbers: those of torch are drawn by dropout too, which only some upsamplers have
            size = [self.crop] * 2
            start = [np.random.randint(side - self.crop + 1) for side in labels.shape]
        window = tuple(slice(first, first + side) for first, side in zip(start, size))
        image, labels = image[window], labels[window]
        if self.crop is not None and np.random.rand() < 0.5:
            image, labels = image[:, ::-1], labels[:, ::-1]
        inputs = torch.from_numpy(image.transpose(2, 0, 1).copy()).float() / 127.5 - 1
        return dict(inputs=inputs, labels=torch.from_numpy(labels.copy()), split=split, name=path.stem)


# ---- model


@MODELS.register_module()
class ColourStep(BaseUpsampler):
    """:class:`ColourAffiliation` behind the interface of the others; its guide is the picture."""

    guided_by_picture = True

    def __init__(self, in_channels, guide_channels=None):
        super().__init__(in_channels, guide_channels)
        self.affiliation = ColourAffiliation()

    def forward(self, feature, guide):
        return self.affiliation(feature, guide)


class GuideEncoder(nn.Module):
    """Two 3x3 convolutions a level, at the picture's own size first, then at half the size of the level before."""

    def __init__(self, levels: int, channels: int) -> None:
        super().__init__()
        self.inner = nn.ModuleList(nn.Conv2d(3 if i == 0 else channels, channels, 3, padding=1) for i in range(levels))
        self.outer = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(levels))

    def forward(self, x: Tensor) -> list[Tensor]:
        guides = []
        for inner, outer in zip(self.inner, self.outer):
            x = inner(x if not guides else F.avg_pool2d(x, 2)).relu()
            guides.append(outer(x))
        return guides


@MODELS.register_module()
class KnownSignalModel(BaseModel):
    """Average a known signal down and bring it back in guided steps of two.

    Args:
        num_classes (int): Labels.
        ratio (int): 2, 4, 8, ...: how much smaller the averaged signal is.
        upsample_cfg (dict): The upsampler, one of its own for each step.
        channels (int): Channels of the embedded signal and of the guides, at least ``num_classes``. Defaults to 32.
        true_guide (bool): The guides are the signal itself at the size of each step: an encoder that knows every label.
            Defaults to False: they come from the picture.
    """

    def __init__(
        self, num_classes: int, ratio: int, upsample_cfg: dict, channels: int = 32, true_guide: bool = False
    ) -> None:
        super().__init__()
        self.num_classes, self.ratio, self.true_guide = num_classes, ratio, true_guide
        steps = ratio.bit_length() - 1
        noise = torch.randn(channels, num_classes, generator=torch.Generator().manual_seed(0))
        self.register_buffer('embedding', torch.linalg.qr(noise)[0].T.contiguous())  # (num_classes, channels)
        self.encoder = GuideEncoder(steps, channels)  # before the upsamplers: the same of one seed for all of them
        self.upsamplers = nn.ModuleList()
        for _ in range(steps):
            by_picture = getattr(MODELS.get(upsample_cfg['type']), 'guided_by_picture', False)
            self.upsamplers.append(build_upsampler(upsample_cfg, channels, 3 if by_picture else channels))

    def steps(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, tuple]:
        """The embedded signal, what comes back of it, and ``(upsampler, feature, guide)`` of the last step."""
        signal = self.embedding[labels].permute(0, 3, 1, 2)
        x = F.avg_pool2d(signal, self.ratio)
        levels = range(len(self.upsamplers))
        guides = [F.avg_pool2d(signal, 2**level) for level in levels] if self.true_guide else self.encoder(inputs)
        for i, upsampler in enumerate(self.upsamplers):
            level = len(guides) - 1 - i
            by_picture = getattr(upsampler, 'guided_by_picture', False)
            guide = F.avg_pool2d(inputs, 2**level) if by_picture else guides[level]
            last = upsampler, x, guide
            x = upsampler(x, guide)
        return signal, x, last

    def forward(self, inputs: Tensor, labels: Tensor, mode: str = 'loss', **others):
        """The loss, or of each picture the scores of all labels and the last step."""
        signal, x, last = self.steps(inputs, labels)
        if mode == 'loss':
            # what no upsampler uses, as the encoder under bilinear interpolation, has the gradient 0
            unused = sum(0 * parameter.sum() for parameter in self.parameters())
            return dict(loss=(x - signal).square().sum(1).mean() + unused)
        scores = torch.einsum('nchw,kc->nkhw', x, self.embedding)
        return [dict(scores=scores[0], last=last)]


# ---- measure


def near_boundary(labels: np.ndarray, width: int) -> np.ndarray:
    """Where another label is within ``width`` rows and columns."""
    square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    labels = labels.astype(np.uint8)
    return cv2.erode(labels, square) != cv2.dilate(labels, square)


def window_kinds(labels: np.ndarray, kernel_size: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Which positions of a step of two have a smooth window, of one label alone, and which a detail window.

    Windows that reach beyond the map are neither.
    """
    cells = labels.reshape(labels.shape[0] // 2, 2, labels.shape[1] // 2, 2).transpose(0, 2, 1, 3)
    least, most = (pick(cells, axis=(2, 3)).astype(np.uint8) for pick in (np.min, np.max))
    square = np.ones((kernel_size, kernel_size), np.uint8)
    smooth = cv2.erode(least, square) == cv2.dilate(most, square)
    whole = np.zeros_like(smooth)
    r = kernel_size // 2
    whole[r:-r, r:-r] = True
    return tuple(np.kron(kind, np.ones((2, 2), bool)) for kind in (smooth & whole, ~smooth & whole))


def entropy(kernels: Tensor) -> Tensor:
    """Entropy over the points, divided by its largest value: 1 is an average, 0 a choice. Mean over groups.

    Args:
        kernels: ``(1, points, H, W)`` or ``(1, groups, points, H, W)``, a distribution over the points.
    """
    kernels = kernels[0] if kernels.dim() == 5 else kernels
    return (-torch.xlogy(kernels, kernels).sum(1) / np.log(kernels.shape[1])).mean(0)


def own_share(kernels: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """How much of each kernel lies on its position's own label, ``(H, W)``; cells count by their share of the label."""
    cells = F.avg_pool2d(F.one_hot(labels, num_classes).permute(0, 3, 1, 2).float(), 2)
    shares = feature_assembly(cells, kernels.contiguous(), round(kernels.shape[1] ** 0.5))
    return shares.gather(1, labels[:, None])[0, 0]


@METRICS.register_module()
class KnownSignalErrors(BaseMetric):
    """Errors near boundaries and inside, and what the kernels of the last step do, for each split by itself.

    ``error.R`` is the percentage of positions of the region ``R`` whose largest score is of a wrong label, ``square.R``
    the squared error of the scores, summed over labels, times 100. Regions: ``1px`` to ``5px`` around boundaries,
    ``inside`` (further than 5 pixels from one) and ``all``. Figures of the training pictures begin with ``train``.

    Args:
        scored (int): Labels from this on are not scored.
        kernels (bool): Measure the kernels too. Defaults to False.
    """

    def __init__(self, scored: int, kernels: bool = False) -> None:
        super().__init__()
        self.scored, self.kernels = scored, kernels

    def process(self, data_batch, data_samples) -> None:
        labels = data_batch['labels']
        truth = labels[0].numpy()
        scores = data_samples[0]['scores']
        scored = truth < self.scored
        wrong = scores.argmax(0).cpu().numpy() != truth
        square = (scores - F.one_hot(labels[0].to(scores.device), len(scores)).permute(2, 0, 1)).square().sum(0)
        square = square.cpu().numpy()
        regions = {f'{width}px': near_boundary(truth, width) for width in WIDTHS}
        regions['inside'] = ~regions[f'{WIDTHS[-1]}px']
        regions['all'] = np.ones_like(scored)
        counts = {}
        for name, region in regions.items():
            at = region & scored
            counts[name] = np.array([at.sum(), wrong[at].sum(), square[at].sum(dtype=np.float64)])
        kernels = self._kernels(labels, truth, *data_samples[0]['last']) if self.kernels else {}
        self.results.append((data_batch['split'][0], data_batch['name'][0], counts, kernels))

    def _kernels(self, labels, truth, upsampler, feature, guide) -> dict:
        """Sums and histograms over the positions of smooth and detail windows."""
        if not hasattr(upsampler, 'kernels'):
            return {}
        kernels = upsampler.kernels(feature, guide)
        values = entropy(kernels).cpu().numpy()
        found = {}
        smooth, detail = window_kinds(truth)
        kinds = dict(smooth=smooth, detail=detail, boundary=detail & near_boundary(truth, 1))
        for kind, where in kinds.items():
            found[kind] = np.histogram(values[where].clip(0, 1), BINS, (0, 1))[0]
        if kernels.dim() == 4 and kernels.shape[1] == 25:
            at = torch.from_numpy(kinds['detail'])
            average = torch.full_like(kernels, 1 / kernels.shape[1])
            for name, weights in dict(kernel=kernels, average=average).items():
                share = own_share(weights, labels.to(weights.device), len(self.labels()))[at]
                found[f'share {name}'] = np.array([len(share), float(share.double().sum())])
        return found

    def labels(self) -> range:
        return range(self.dataset_meta['num_classes'])

    def compute_metrics(self, results) -> dict[str, float]:
        metrics = {}
        for split in dict.fromkeys(result[0] for result in results):
            prefix = 'train ' if split == 'train' else ''
            part = [result for result in results if result[0] == split]
            for region in part[0][2]:
                number, wrong, square = sum(counts[region] for _, _, counts, _ in part)
                metrics[f'{prefix}error.{region}'] = 100 * wrong / number
                metrics[f'{prefix}square.{region}'] = 100 * square / number
            if not prefix:
                for _, name, counts, _ in part:
                    number, wrong, _ = counts[f'{PICTURE_WIDTH}px']
                    metrics[f'picture/{name}'] = 100 * wrong / max(number, 1)
            if part[0][3]:
                metrics.update((f'{prefix}{key}', value) for key, value in kernel_figures(part).items())
        return {key: float(value) for key, value in metrics.items()}


def kernel_figures(part) -> dict[str, float]:
    """Quantiles of the entropy, how well it tells windows apart, and the share of a point's own label."""
    figures, histograms = {}, {}
    centres = (np.arange(BINS) + 0.5) / BINS
    for kind in ('smooth', 'detail', 'boundary'):
        histograms[kind] = counts = sum(kernels[kind] for *_, kernels in part)
        reached = np.cumsum(counts) / counts.sum()
        figures[f'entropy {kind}.mean'] = (counts * centres).sum() / counts.sum()
        for quantile in QUANTILES:
            figures[f'entropy {kind}.{quantile:02d}'] = centres[np.searchsorted(reached, quantile / 100)]
    smooth, detail = (histograms[kind] / histograms[kind].sum() for kind in ('smooth', 'detail'))
    # the chance that the kernel of a smooth window is the more even one; ties count half
    figures['entropy order.smooth above detail'] = (smooth * (np.cumsum(detail) - detail / 2)).sum()
    for name in ('share kernel', 'share average'):
        if name in part[0][3]:
            number, total = sum(kernels[name] for *_, kernels in part)
            figures[f'own label.{name.split()[1]}'] = 100 * total / number
    return figures
