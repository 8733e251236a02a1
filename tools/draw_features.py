#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Draw what the upsamplers of a trained model do with a picture (Figures 2, S1 and S4 of the paper).

Writes into a folder, for each model

    MODEL_stages.png       a row for each upsampler, as it runs: guide, feature, kernel map, upsampled feature, and
                           bilinear interpolation of the same feature; principal components, one basis for the row
    MODEL_kernels_N.png    kernels of chosen points over the picture, of upsampler N

and for all models together

    predictions.png        the picture, and a prediction of each model
    upsampled.png          the upsampled features of all models side by side, with --compare

Works for every config whose model has an upsampler of this package: segmentation, detection, depth, matting.
"""

import argparse
import tempfile
from pathlib import Path

from _common import check_checkpoint, fail, read_config, register_toolbox  # before torch: sets how its threads wait

# isort: split
import cv2
import torch
from mmengine.config import DictAction
from mmengine.registry import VISUALIZERS, DefaultScope


def point(text):
    """``Y,X`` as two integers."""
    try:
        y, x = map(int, text.split(','))
    except ValueError:
        raise argparse.ArgumentTypeError(f'a point is Y,X in pixels, such as 120,80, got {text!r}') from None
    return y, x


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file of an mmseg, mmdet or matting model')
    parser.add_argument('checkpoint', help='its checkpoint')
    parser.add_argument('image', help='picture to look at')
    parser.add_argument('--trimap', help='for a matting model: 0 background, 255 foreground, else unknown')
    parser.add_argument('--compare', nargs='+', default=[], metavar='FILE', help='CONFIG CHECKPOINT of more models')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/features'), help='default: work_dirs/features')
    parser.add_argument(
        '--points',
        nargs='+',
        type=point,
        metavar='Y,X',
        help='points of the picture whose kernels are drawn (default: its strongest edges and its flattest place)',
    )
    parser.add_argument(
        '--neighbour',
        nargs=2,
        type=int,
        metavar=('ROW', 'COLUMN'),
        help='neighbour of the kernel maps, from the centre of the window (default: the top left)',
    )
    parser.add_argument('--device', help='default: cuda:0 where there is one, else cpu')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings of the first config')
    args = parser.parse_args()
    if len(args.compare) % 2:
        parser.error('--compare takes a checkpoint for each config: CONFIG CHECKPOINT [CONFIG CHECKPOINT ...]')
    args.device = args.device or ('cuda:0' if torch.cuda.is_available() else 'cpu')
    return args


def read_models(args):
    """Config and checkpoint of each model, by a name of its own; end the program where one cannot be used."""
    files = [args.config, args.checkpoint, *args.compare]
    models = {}
    for config, checkpoint in zip(files[::2], files[1::2], strict=True):
        cfg = read_config(config, args.cfg_options if not models else None, needs=('test_dataloader', 'visualizer'))
        check_checkpoint(checkpoint)
        if cfg.default_scope == 'mmengine' and cfg.model.type != 'sapa_mm.Mattor':
            fail(f'{config} is of neither toolbox; of such models, those of type sapa_mm.Mattor can be drawn')
        if cfg.default_scope == 'mmengine' and not args.trimap:
            fail(f'{config} is a matting model: it needs the trimap of the picture, --trimap FILE')
        name, number = Path(config).stem, 2
        while name in models:
            name, number = f'{Path(config).stem}_{number}', number + 1
        models[name] = cfg, checkpoint
    return models


def record(cfg, checkpoint, image, device, trimap=None):
    """Run a model on a picture.

    Returns:
        What its upsamplers did, rows and columns of the network's input for one of the picture, and the prediction as a
        picture.
    """
    from sapa_mm.visualization import record_upsamplers

    scope = register_toolbox(cfg)
    with DefaultScope.overwrite_default_scope(scope):
        if scope == 'mmengine':
            model = init_mattor(cfg, checkpoint, device)
        elif scope == 'mmdet':
            from mmdet.apis import init_detector

            model = init_detector(cfg, checkpoint, device=device)
        else:
            from mmseg.apis import init_model

            model = init_model(cfg, checkpoint, device=device)
        try:
            with record_upsamplers(model) as recording:
                ratios, prediction = predict(scope, cfg, model, image, trimap)
        except ValueError as error:
            fail(f'{cfg.filename}: {error}')
    return recording, ratios, prediction


def init_mattor(cfg, checkpoint, device):
    from mmengine.runner import load_checkpoint

    from sapa_mm.registry import MODELS

    model = MODELS.build(cfg.model)
    load_checkpoint(model, checkpoint, map_location='cpu')
    return model.to(device).eval()


def predict(scope, cfg, model, image, trimap):
    """Rows and columns of the network's input for one of the picture, and the prediction as a picture."""
    if scope == 'mmengine':
        from sapa_mm.matting import predict_alpha

        return (1, 1), cv2.cvtColor(predict_alpha(model, image, trimap), cv2.COLOR_GRAY2RGB)
    if type(model).__name__ == 'DepthEstimator':
        from sapa_mm.depth.inference import paint_depth, predict_depth

        painted = paint_depth(predict_depth(model, image), getattr(model.decode_head, 'max_depth', None))
        return (1, 1), cv2.cvtColor(painted, cv2.COLOR_BGR2RGB)
    if scope == 'mmdet':
        from mmdet.apis import inference_detector

        sample = inference_detector(model, image)
    else:
        from mmseg.apis import inference_model

        sample = inference_model(model, image)
    return ratios_of(scope, sample), draw_prediction(cfg, model, image, sample)


def ratios_of(scope, sample):
    """Rows and columns of the network's input for one of the picture."""
    if scope == 'mmdet':  # a pipeline that pads, as those of YOLOX and RTMDet do, counts its padding in img_shape
        return tuple(sample.get('scale_factor', (1, 1)))[::-1]
    # a pipeline that resizes twice, to multiples of 32, leaves the second one out of scale_factor
    return tuple(now / before for before, now in zip(sample.ori_shape, sample.img_shape))


def draw_prediction(cfg, model, image, sample):
    """The picture with the prediction painted over it by the toolbox's own visualizer."""
    settings = {**cfg.visualizer, 'vis_backends': None, 'name': f'draw_features_{id(model)}'}
    visualizer = VISUALIZERS.build(settings)
    visualizer.dataset_meta = model.dataset_meta
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'prediction.png'
        picture = cv2.cvtColor(cv2.imread(image), cv2.COLOR_BGR2RGB)
        visualizer.add_datasample('prediction', picture, sample.cpu(), draw_gt=False, out_file=str(file))
        return cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)


def input_points(points, ratios):
    """Points of the picture as points of the network's input, which was resized, and padded on the right and below."""
    return [tuple(int((p + 0.5) * ratio) for p, ratio in zip(point, ratios)) for point in points]


def main():
    args = parse_args()
    if not Path(args.image).is_file():
        fail(f'there is no picture {args.image}')
    picture = cv2.imread(args.image)
    if picture is None:
        fail(f'{args.image} cannot be read as a picture')
    for y, x in args.points or ():
        if not (0 <= y < picture.shape[0] and 0 <= x < picture.shape[1]):
            fail(f'the point {y},{x} lies outside the picture of {picture.shape[0]} x {picture.shape[1]} pixels')
    if args.trimap and not Path(args.trimap).is_file():
        fail(f'there is no trimap {args.trimap}')
    models = read_models(args)

    from sapa_mm.visualization import choose_points, draw_kernels, draw_row, draw_stages, draw_upsampled

    picture = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    points = args.points or choose_points(picture)
    args.out.mkdir(parents=True, exist_ok=True)
    stages, predictions = {}, {'picture': picture}
    for name, (cfg, checkpoint) in models.items():
        recording, ratios, predictions[name] = record(cfg, checkpoint, args.image, args.device, args.trimap)
        if not recording.stages:
            fail(f'no upsampler of {name} has run on {args.image}: no region was found in it')
        stages[name] = recording.first
        try:
            figure = draw_stages(stages[name], args.neighbour)
        except ValueError as error:
            fail(error)
        save(figure, args.out / f'{name}_stages.png')
        seen = stages[name][0].picture.shape[:2]
        there = [p for p in input_points(points, ratios) if all(x < side for x, side in zip(p, seen))]
        if args.points and len(there) < len(points):
            fail(f'{name} cuts the picture into windows; the first, of {seen[0]} x {seen[1]} pixels, lacks a point')
        for number, stage in enumerate(stages[name]):
            if stage.of_picture and stage.kernels is not None:
                save(draw_kernels(stage, there or None), args.out / f'{name}_kernels_{number}.png')
    save(draw_row(predictions), args.out / 'predictions.png')
    if len(models) > 1:
        save(draw_upsampled(stages), args.out / 'upsampled.png')


def save(figure, path):
    figure.savefig(path, dpi=120)
    print(path)


if __name__ == '__main__':
    main()
