# SPDX-License-Identifier: Apache-2.0
"""SAD, MSE, gradient and connectivity error of a matte, in the three definitions that are in use.

All numbers are of 8-bit mattes and of the unknown region of the trimap, unless a definition says otherwise. The
definitions differ as follows:

==============  =======================================================================================================
``'matlab'``    The test scripts of Composition-1k, which published tables are made with.
``'mmagic'``    SAD and MSE sum over the whole map (MSE divided by the number of unknown pixels). The thresholds of the
                connectivity error are float64 sums of 0.1, so that 0.6 falls short of the seventh. A threshold without
                any pixel counts.
``'a2u'``       The script that picked the best epoch of A2U: both mattes are stretched to 0..255 for all four, the
                gradient comes from scipy's ``gaussian_filter``, and is divided by 10 in place of 1000. That script
                rounds to float32; here all is float64.
==============  =======================================================================================================
"""

import math

import cv2
import numpy as np
from mmengine.evaluator import BaseMetric

from ..registry import METRICS

DEFINITIONS = ('matlab', 'mmagic', 'a2u')
UNKNOWN = 128
SIGMA = 1.4
STEP = 0.1


def check_mattes(pred: np.ndarray, alpha: np.ndarray, trimap: np.ndarray, definition: str) -> None:
    """Raise unless these are three 8-bit maps of one size and ``definition`` is known."""
    if definition not in DEFINITIONS:
        raise ValueError(f'definition must be one of {DEFINITIONS}, got {definition!r}')
    for name, x in dict(pred=pred, alpha=alpha, trimap=trimap).items():
        if x.dtype != np.uint8:
            raise TypeError(f'{name} must have dtype uint8, got {x.dtype}')
        if x.ndim != 2 or x.shape != pred.shape:
            raise ValueError(f'{name} must have the shape (H, W) of pred, {pred.shape}, got {x.shape}')


def matting_errors(
    pred: np.ndarray, alpha: np.ndarray, trimap: np.ndarray, definition: str = 'matlab'
) -> dict[str, float]:
    """The four errors of one matte.

    Args:
        pred: Predicted matte, ``(H, W)`` uint8; the known regions should be those of the trimap.
        alpha: True matte, ``(H, W)`` uint8.
        trimap: ``(H, W)`` uint8: 0 background, 128 unknown, 255 foreground.
        definition: ``'matlab'``, ``'mmagic'`` or ``'a2u'``. Defaults to ``'matlab'``.

    Returns:
        ``sad``, ``mse``, ``grad``, ``conn``, each a float; SAD, gradient and connectivity divided by 1000. All 0
        without an unknown pixel.

    Raises:
        TypeError: If a map is not uint8.
        ValueError: If the shapes differ or the definition is not known.

    Source: https://doi.org/10.1109/CVPR.2009.5206503 (gradient and connectivity)
    """
    check_mattes(pred, alpha, trimap, definition)
    unknown = trimap == UNKNOWN
    if not unknown.any():
        return dict(sad=0.0, mse=0.0, grad=0.0, conn=0.0)
    pred, alpha = (x.astype(np.float64) for x in (pred, alpha))
    if definition == 'a2u':
        pred, alpha = (_stretch(x) * 255 for x in (pred, alpha))
    region = np.ones_like(unknown) if definition == 'mmagic' else unknown
    difference = (pred - alpha)[region] / 255
    return dict(
        sad=np.abs(difference).sum() / 1000,
        mse=np.square(difference).sum() / unknown.sum(),
        grad=_gradient_error(pred, alpha, unknown, definition),
        conn=_connectivity_error(pred / 255, alpha / 255, unknown, definition),
    )


def _stretch(x):
    """To 0..1 by its least and largest value; a constant map becomes 0."""
    spread = x.max() - x.min()
    return (x - x.min()) / spread if spread else np.zeros_like(x)


def _gaussian_kernels():
    """Derivatives of the Gaussian along x and y, of unit length, cut where they fall below a hundredth."""
    half = math.ceil(SIGMA * math.sqrt(-2 * math.log(0.01 * math.sqrt(2 * math.pi) * SIGMA)))
    place = np.arange(-half, half + 1)
    gaussian = np.exp(-(place**2) / (2 * SIGMA**2)) / (SIGMA * math.sqrt(2 * math.pi))
    along_x = np.outer(gaussian, -place * gaussian / SIGMA**2)
    along_x /= np.linalg.norm(along_x)
    return along_x, along_x.T


def _gradient_error(pred, alpha, unknown, definition):
    def magnitude(x):
        x = _stretch(x)
        if definition == 'a2u':
            from scipy import ndimage

            parts = [ndimage.gaussian_filter(x, SIGMA, order) for order in ((0, 1), (1, 0))]
        else:
            parts = [cv2.filter2D(x, -1, kernel, borderType=cv2.BORDER_REPLICATE) for kernel in _gaussian_kernels()]
        return np.hypot(*parts)

    error = np.square(magnitude(pred) - magnitude(alpha))[unknown].sum()
    return error / (10 if definition == 'a2u' else 1000)


def _connectivity_error(pred, alpha, unknown, definition):
    thresholds = np.arange(0, 1 + STEP, STEP)
    # in float32, where 153 / 255 reaches the seventh threshold, unless mmagic compares
    compared = np.float64 if definition == 'mmagic' else np.float32
    level = np.full(pred.shape, -1.0)  # the last threshold at which a pixel belonged to the largest component
    for before, threshold in zip(thresholds, thresholds[1:]):
        both = np.minimum(pred, alpha).astype(compared) >= compared(threshold)
        if definition != 'mmagic' and not both.any():
            continue
        _, labels, stats, _ = cv2.connectedComponentsWithStats(both.astype(np.uint8), connectivity=4)
        areas = stats[1:, cv2.CC_STAT_AREA]
        inside = labels == areas.argmax() + 1 if len(areas) else np.zeros(both.shape, bool)
        level[(level == -1) & ~inside] = before
    level[level == -1] = 1

    def connectivity(x):
        distance = x - level
        return 1 - distance * (distance >= 0.15)

    return np.abs(connectivity(pred) - connectivity(alpha))[unknown].sum() / 1000


@METRICS.register_module()
class MattingMetric(BaseMetric):
    """SAD, MSE, gradient and connectivity error, means over the pictures.

    It reads ``pred_alpha``, ``alpha`` and ``trimap`` of each data sample, all ``(H, W)`` uint8.

    Args:
        definition (str): ``'matlab'`` (published tables), ``'mmagic'`` or ``'a2u'``; how they differ is said in
            :mod:`sapa_mm.matting.metrics`. Defaults to ``'matlab'``.
        collect_device (str): Device that gathers results of several processes. Defaults to ``'cpu'``.
        prefix (str, optional): Prefix of the keys. Defaults to None: ``SAD``, ``MSE``, ``Grad``, ``Conn``.

    Raises:
        ValueError: If the definition is not known; in an evaluation, if shapes differ or there was no picture.
    """

    def __init__(self, definition: str = 'matlab', collect_device: str = 'cpu', prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if definition not in DEFINITIONS:
            raise ValueError(f'definition must be one of {DEFINITIONS}, got {definition!r}')
        self.definition = definition

    def process(self, data_batch, data_samples) -> None:
        for sample in data_samples:
            maps = (np.asarray(sample[name]) for name in ('pred_alpha', 'alpha', 'trimap'))
            self.results.append(matting_errors(*maps, self.definition))

    def compute_metrics(self, results: list[dict[str, float]]) -> dict[str, float]:
        if not results:
            raise ValueError('no picture was evaluated')
        names = dict(sad='SAD', mse='MSE', grad='Grad', conn='Conn')
        return {shown: float(np.mean([r[name] for r in results])) for name, shown in names.items()}
