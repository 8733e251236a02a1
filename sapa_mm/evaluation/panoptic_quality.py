# SPDX-License-Identifier: Apache-2.0
"""Panoptic quality, without panopticapi, of which there is no release to install."""

from collections.abc import Sequence

import numpy as np
from mmdet.evaluation.functional import INSTANCE_OFFSET
from mmengine.evaluator import BaseMetric

from sapa_mm.datasets.panoptic import read_segment_ids
from sapa_mm.registry import METRICS

VOID = -1


@METRICS.register_module()
class PanopticQuality(BaseMetric):
    r"""Panoptic quality of mmdet's panoptic models.

    Predicted and true segments of one class match if their intersection over union is above 1/2, which at most one
    pair of each can be. Per class,

    ``PQ = sum of the IoU of matches / (TP + FP / 2 + FN / 2) = SQ * RQ``

    with ``SQ`` the mean IoU of matches and ``RQ = TP / (TP + FP / 2 + FN / 2)``. Pixels without a true segment leave
    the union; a predicted segment that lies by more than half on them, or on a crowd of its class, is no false
    positive; a crowd is no false negative. The mean is over classes that occur.

    The test pipeline must keep ``seg_map_path`` and ``segments_info`` of ``CocoPanopticDataset``:
    ``PackDetInputs(meta_keys=(..., 'seg_map_path', 'segments_info'))``.

    Args:
        collect_device (str): ``'cpu'`` or ``'gpu'``, where results of several processes meet. Defaults to ``'cpu'``.
        prefix (str, optional): Prefix of the names. Defaults to ``'panoptic'``.

    Source: https://arxiv.org/abs/1801.00868
    """

    default_prefix = 'panoptic'

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Compare the predictions of one batch with the pictures that ``seg_map_path`` names."""
        classes = len(self.dataset_meta['classes'])
        things = len(self.dataset_meta['thing_classes'])
        for sample in data_samples:
            truth = read_segment_ids(sample['seg_map_path'])
            prediction = sample['pred_panoptic_seg']['sem_seg'][0].cpu().numpy()
            # CocoPanopticDataset keeps of a crowd that it is a thing by its class but none by its flag
            segments = {
                info['id']: (info['category'], info['category'] < things and not info['is_thing'])
                for info in sample['segments_info']
            }
            self.results.append(count_matches(prediction, truth, segments, classes))

    def compute_metrics(self, results: list[np.ndarray]) -> dict[str, float]:
        """PQ, SQ and RQ in percent, of all classes, of things and of stuff.

        Args:
            results: One :func:`count_matches` per image.

        Returns:
            dict: ``PQ``, ``SQ``, ``RQ`` and the same with ``_th`` and ``_st``.
        """
        iou, tp, fp, fn = np.sum(results, axis=0).T
        occurs = tp + fp + fn > 0
        rq = tp / np.maximum(tp + fp / 2 + fn / 2, 1)
        sq = iou / np.maximum(tp, 1)
        thing = np.arange(len(tp)) < len(self.dataset_meta['thing_classes'])
        metrics = {}
        for suffix, chosen in (('', occurs), ('_th', occurs & thing), ('_st', occurs & ~thing)):
            for name, values in (('PQ', sq * rq), ('SQ', sq), ('RQ', rq)):
                metrics[name + suffix] = 100 * float(values[chosen].mean()) if chosen.any() else float('nan')
        return metrics


def count_matches(
    prediction: np.ndarray, truth: np.ndarray, segments: dict[int, tuple[int, bool]], num_classes: int
) -> np.ndarray:
    """Match the segments of one image.

    Args:
        prediction: ``(H, W)``, class plus 1000 times the instance; a class of ``num_classes`` or more is no prediction.
        truth: ``(H, W)``, numbers of segments; those not in ``segments`` are void.
        segments: Class and whether it is a crowd, of each true segment.
        num_classes: Number of classes.

    Returns:
        ``(num_classes, 4)``: sum of the IoU of matches, true positives, false positives, false negatives.
    """
    prediction = np.where(prediction % INSTANCE_OFFSET < num_classes, prediction, VOID)
    truth = np.where(np.isin(truth, list(segments)), truth, VOID)
    pairs, counts = np.unique(np.stack([prediction.ravel(), truth.ravel()]), axis=1, return_counts=True)
    overlap = {(int(p), int(t)): int(count) for (p, t), count in zip(pairs.T, counts)}
    area = {int(p): int(count) for p, count in zip(*np.unique(prediction, return_counts=True)) if p != VOID}
    true_area = {int(t): int(count) for t, count in zip(*np.unique(truth, return_counts=True)) if t != VOID}

    counted = np.zeros((num_classes, 4))
    matched = set()
    for (p, t), intersection in overlap.items():
        if p == VOID or t == VOID:
            continue
        label, crowd = segments[t]
        union = area[p] + true_area[t] - intersection - overlap.get((p, VOID), 0)
        if not crowd and label == p % INSTANCE_OFFSET and intersection / union > 0.5:
            counted[label] += intersection / union, 1, 0, 0
            matched |= {('prediction', p), ('truth', t)}
    for t in true_area:
        label, crowd = segments[t]
        if not crowd and ('truth', t) not in matched:
            counted[label, 3] += 1
    for p in area:
        label = p % INSTANCE_OFFSET
        crowds = [t for t, (category, crowd) in segments.items() if crowd and category == label]
        ignored = sum(overlap.get((p, t), 0) for t in [VOID, *crowds])
        if ('prediction', p) not in matched and ignored / area[p] <= 0.5:
            counted[label, 2] += 1
    return counted
