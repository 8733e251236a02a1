# SPDX-License-Identifier: Apache-2.0
"""A page to play with: click on a picture and see of what each upsampler mixes that point.

    python -m sapa_mm.play                      the upsamplers alone, on features of the picture itself
    python -m sapa_mm.play CONFIG CHECKPOINT    the upsamplers of a trained mmseg or mmdet model

The page is served to this computer alone, and neither it nor the server asks another one for anything.
"""

import argparse
import errno
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path

#: Longest side in pixels of a picture without a model; larger ones are reduced.
LONGEST = 512
#: Steps of the page without a model, as strides in pixels: from the first to the second.
STEPS = ((16, 8), (8, 4), (4, 2))
#: Cells shown around the clicked one, on each side: at least, and at most.
RADII = (2, 4)
#: What is shown first without a model. All work without training.
FIRST = ('Bilinear', 'Nearest', 'ColourAffiliation', 'SAPA-I')
#: Whose kernels are only a part of what they do.
PARTS = ('FADE', 'FADELite', 'FreqFusion')
# OpenMP reads this when torch is imported: threads that spin while they wait make a busy machine many times slower.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
#: No browser asks another server while it shows the page.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' ws: data: blob:"
)
CSS = """
.gradio-container { max-width: 1240px !important; }
.stage { margin: 0 0 1.4rem; }
.stage h3 { font-size: 1.05rem; margin: 0 0 .15rem; }
.stage p { margin: 0 0 .5rem; opacity: .75; font-size: .92rem; }
.panels { display: grid; gap: .9rem; grid-template-columns: repeat(auto-fill, minmax(max(120px, 21%), 1fr)); }
.panels figure { margin: 0; }
.panels svg { width: 100%; height: auto; display: block; border-radius: 6px; }
.panels figcaption { font-size: .85rem; line-height: 1.35; padding-top: .3rem; }
.panels .untrained { color: #b45309; font-weight: 600; }
.dark .panels .untrained { color: #fbbf24; }
#picture img { cursor: crosshair; image-rendering: auto; }
@media (max-width: 640px) { #picture img { max-height: 46vh; object-fit: contain; } }
"""


def fail(message: str) -> None:
    """End the program with one line."""
    print(f'error: {" ".join(str(message).split())}', file=sys.stderr)
    raise SystemExit(2)


try:
    import numpy as np
    import torch
    from PIL import Image, ImageDraw, UnidentifiedImageError
    from torch import Tensor, nn
    from torch.nn import functional as F
except ImportError as error:
    fail(f"the page needs {error.name}: pip install 'sapa-mm[play]'")


@dataclass
class Panel:
    """An upsampler at one step: what it is called, what there is to say of it, and its mixture."""

    name: str
    note: str
    mixture: object
    untrained: bool = False


@dataclass
class View:
    """One step from a coarse map to a finer one, seen by several upsamplers."""

    title: str
    panels: list[Panel]
    #: Height and width in pixels of the picture that the result covers, and that the feature covers.
    extents: tuple[tuple[int, int], tuple[int, int]]


@dataclass
class Scene:
    """A picture, and all that is computed of it before the first click."""

    picture: np.ndarray
    views: list[View]


def read_picture(path: str | Path) -> np.ndarray:
    """RGB, ``(H, W, 3)`` uint8.

    Raises:
        ValueError: If there is no such file or it is no picture.
    """
    try:
        with Image.open(path) as file:
            return np.array(file.convert('RGB'))
    except FileNotFoundError:
        raise ValueError(f'there is no picture {path}') from None
    except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f'{path} cannot be read as a picture ({type(error).__name__})') from None


def draw_picture(seed: int, side: int = 256) -> np.ndarray:
    """A generated picture: a disc, a box, a star and thin bands in random colours, ``(side, side, 3)`` uint8."""
    rng = np.random.default_rng(seed)
    big = Image.new('RGB', (2 * side, 2 * side))
    y, x = np.mgrid[: 2 * side, : 2 * side] / (2 * side)
    low, high = rng.uniform(30, 110, 3), rng.uniform(130, 220, 3)
    big.paste(
        Image.fromarray((low + (y + 0.3 * np.sin(5 * x))[..., None] / 1.3 * (high - low)).clip(0, 255).astype(np.uint8))
    )
    draw = ImageDraw.Draw(big)

    def colour():
        return tuple(int(c) for c in rng.uniform(0, 255, 3))

    def around(centre, radii, count):
        angles = rng.uniform(0, 6.28) + np.arange(count) * 2 * np.pi / count
        reach = np.resize(radii, count)
        return [(centre[0] + r * np.cos(a), centre[1] + r * np.sin(a)) for r, a in zip(reach, angles)]

    places = [(i, j) for i in (0.28, 0.72) for j in (0.28, 0.72)]
    places = [2 * side * (np.array(places[k]) + rng.uniform(-0.07, 0.07, 2)) for k in rng.permutation(4)]
    radius = 0.4 * side
    draw.polygon(around(places[0], (radius,), 60), fill=colour())
    draw.polygon(around(places[1], (0.9 * radius,), 4), fill=colour())
    draw.polygon(around(places[2], (1.1 * radius, 0.4 * radius), 14), fill=colour())
    for k in range(3):
        along = np.linspace(-0.1, 1.1, 60) * 2 * side
        across = places[3][1] + (k - 1) * 0.25 * side + 0.1 * side * np.sin(along / (0.3 * side) + k)
        line = list(zip(along, across)) if seed % 2 else list(zip(across, along))
        draw.line([tuple(map(float, p)) for p in line], fill=colour(), width=int(6 + 5 * k), joint='curve')
    picture = np.asarray(big.resize((side, side), Image.Resampling.LANCZOS)).astype(float)
    return (picture + rng.normal(0, 4, picture.shape)).clip(0, 255).round().astype(np.uint8)


def reduce_picture(picture: np.ndarray, longest: int = LONGEST) -> np.ndarray:
    """A picture whose longest side is at most ``longest`` and whose sides are multiples of 16, at least 16."""
    height, width = picture.shape[:2]
    ratio = min(1, longest / max(height, width))
    size = [max(16, round(side * ratio / 16) * 16) for side in (width, height)]
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def normalise(picture: np.ndarray) -> Tensor:
    """``(3, H, W)``, of the mean and deviation that image encoders take."""
    pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 255
    mean, deviation = (torch.tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (pixels - mean) / deviation


def describe_picture(picture: np.ndarray) -> Tensor:
    """Features without training, ``(32, H, W)``: colours and brightness, at eight blurs, each less its mean."""
    colours = normalise(picture)
    maps = torch.cat([colours, colours.mean(0, keepdim=True)])[None]
    out = [maps]
    for _ in range(7):
        out.append(F.avg_pool2d(F.pad(out[-1], (1, 1, 1, 1), mode='replicate'), 3, 1))
    features = torch.cat(out, 1)[0]
    return features - features.mean((1, 2), keepdim=True)


@lru_cache(maxsize=1)
def choices() -> dict[str, bool]:
    """Upsamplers that say what they mix, by name, and whether they have weights, which are random here."""
    from sapa_mm.upsamplers import VARIANTS, build_upsampler

    found = {'ColourAffiliation': False}
    for name, cfg in VARIANTS.items():
        upsampler = build_upsampler(cfg, 32, 32)
        kind = type(upsampler).__name__
        says = hasattr(upsampler, 'kernels') or hasattr(upsampler, 'positions') or name in FIRST
        if says and kind not in PARTS and not (kind == 'FlowAlign' and upsampler.gate):
            found[name] = any(True for _ in upsampler.parameters())
    order = [*FIRST, *sorted(set(found) - set(FIRST), key=lambda name: (found[name], name))]
    return {name: found[name] for name in order}


def scene_of_picture(picture: np.ndarray, names: list[str] | tuple[str, ...] = FIRST, device: str = 'cpu') -> Scene:
    """The upsamplers alone, on features of the picture itself.

    Args:
        picture: ``(H, W, 3)`` uint8, any size.
        names: Of :func:`choices`.
        device: Where to compute.

    Raises:
        ValueError: If a name is not known.
    """
    from sapa_mm.upsamplers import VARIANTS, ColourAffiliation, build_upsampler
    from sapa_mm.visualization import mixture_of

    unknown = [name for name in names if name not in choices()]
    if unknown:
        raise ValueError(f'{unknown[0]!r} is none of the upsamplers {", ".join(choices())}')
    picture = reduce_picture(picture)
    features = describe_picture(picture)[None].to(device)
    views = []
    for coarse, fine in STEPS:
        feature, guide = (F.avg_pool2d(features, stride)[0] for stride in (coarse, fine))
        image = F.avg_pool2d(normalise(picture)[None].to(device), fine)[0]
        panels = []
        for name in names:
            if name == 'ColourAffiliation':
                panels.append(Panel(name, _NOTES[name], mixture_of(ColourAffiliation(), feature, image)))
                continue
            torch.manual_seed(0)
            upsampler = build_upsampler(VARIANTS[name], 32, 32).eval().to(device)
            panels.append(Panel(name, _NOTES.get(name, ''), mixture_of(upsampler, feature, guide), choices()[name]))
        views.append(View(f'Stride {coarse} to {fine}', panels, (picture.shape[:2],) * 2))
    return Scene(picture, views)


_NOTES = {
    'Bilinear': 'Mixes by distance alone.',
    'Nearest': 'Copies its cell.',
    'SAPA-I': 'Mixes what is similar. No weights.',
    'ColourAffiliation': 'Looks at colours alone.',
}


def scene_of_model(model: nn.Module, picture: np.ndarray) -> Scene:
    """The upsamplers of a model at each of their stages, beside those that need no training.

    Args:
        model: What ``init_model`` of mmseg or ``init_detector`` of mmdet return.
        picture: ``(H, W, 3)`` uint8.

    Raises:
        ValueError: If the model has no upsampler, or none that ran says what it mixes.
    """
    from sapa_mm.upsamplers import SAPA, Bilinear, ColourAffiliation
    from sapa_mm.visualization import mixture_of, record_upsamplers

    bgr = np.ascontiguousarray(picture[..., ::-1])
    with record_upsamplers(model) as recording, torch.no_grad():
        infer(model, bgr)
    # of a picture that is cut into windows, the first
    stages = [stage for stage in recording.first if stage.of_picture]
    if any(stage.picture is None for stage in stages):
        raise ValueError(f'{type(model).__name__} has no data preprocessor that tells its input')
    device = next(model.parameters()).device
    views = []
    for stage in stages:
        upsampler = model.get_submodule(stage.name)
        feature, guide = stage.feature.to(device), stage.guide.to(device)
        own = mixture_of(upsampler.float(), feature, guide)
        panels = []
        if own is not None:
            note = 'Of this model.'
            if type(upsampler).__name__ in PARTS:
                note += ' Its kernels alone; it adds more.'
            panels.append(Panel(name_of(upsampler), note, own))
        # the rows of the picture that the result covers, those of the padding repeated
        missing = [max(covered - side, 0) for covered, side in zip(stage.extents[0], stage.picture.shape)]
        image = normalise(np.pad(stage.picture, [*((0, more) for more in missing), (0, 0)], 'edge'))
        image = F.adaptive_avg_pool2d(image, stage.result.shape[1:]).to(device)
        beside = [('Bilinear', Bilinear(1), feature, guide[:1])]
        if len(feature) == len(guide) and name_of(upsampler) != 'SAPA-I':
            beside.append(('SAPA-I', SAPA(len(feature), similarity='inner'), feature, guide))
        beside.append(('ColourAffiliation', ColourAffiliation(), feature, image))
        for name, other, x, y in beside:
            if name != name_of(upsampler):
                panels.append(Panel(name, _NOTES[name], mixture_of(other.eval(), x, y)))
        views.append(View(stage.name, panels, stage.extents))
    if not views:
        raise ValueError('no upsampler of the model has run over the whole picture')
    return Scene(stages[0].picture, views)


def name_of(upsampler: nn.Module) -> str:
    """The published name of an upsampler's variant, or that of its class."""
    from sapa_mm.upsamplers import VARIANTS

    kind = type(upsampler).__name__
    for name, cfg in VARIANTS.items():
        options = {key: value for key, value in cfg.items() if key != 'type'}
        if cfg['type'] == f'sapa_mm.{kind}' and all(getattr(upsampler, k, None) == v for k, v in options.items()):
            return name
    return kind


def infer(model: nn.Module, bgr: np.ndarray) -> None:
    """Run a model of either toolbox on a picture."""
    if type(model).__name__ == 'DepthEstimator':
        from sapa_mm.depth.inference import predict_depth

        predict_depth(model, bgr)
    elif model.cfg.get('default_scope') == 'mmdet':
        from mmdet.apis import inference_detector

        inference_detector(model, bgr)
    else:
        from mmseg.apis import inference_model

        inference_model(model, bgr)


def load_model(config: str, checkpoint: str, device: str) -> nn.Module:
    """Build a model with its weights.

    Raises:
        ValueError: If one of the files cannot be used, or the model has no upsampler; in one line.
    """
    for kind, path in (('config', config), ('checkpoint', checkpoint)):
        if not Path(path).is_file():
            raise ValueError(f'there is no {kind} {path}')
    try:
        from mmengine.config import Config
    except ImportError:
        raise ValueError(
            'a config needs mmengine and its toolbox; `python -m sapa_mm.doctor` says what to do'
        ) from None
    try:
        cfg = Config.fromfile(config)
        scope = cfg.get('default_scope')
        missing = [key for key in ('model', 'test_dataloader') if key not in cfg]
    except Exception as error:  # what a config can raise when it is run is anything
        raise ValueError(f'{config} cannot be read as a config ({_reason(error)})') from None
    if missing or scope not in ('mmseg', 'mmdet'):
        what = f'has no {missing[0]}' if missing else f'is of {scope!r}, not of mmseg or mmdet'
        raise ValueError(f'{config} {what}')
    check_checkpoint(checkpoint)
    try:
        if scope == 'mmdet':
            from mmdet.apis import init_detector as init
        else:
            from mmseg.apis import init_model as init
        model = init(cfg, checkpoint, device=device)
    except Exception as error:  # of a type that is not there, weights that do not fit, a device that is not there
        raise ValueError(f'{config} and {checkpoint} give no model ({_reason(error)})') from None
    from sapa_mm.visualization import record_upsamplers

    with record_upsamplers(model):  # a model without upsampler is refused here
        pass
    return model.eval()


def check_checkpoint(path: str) -> None:
    """Raise :class:`ValueError` unless a checkpoint can be read; one that would run code of its own is refused."""
    try:
        from mmengine.runner.checkpoint import get_torch_safe_globals

        allowed = torch.serialization.safe_globals(get_torch_safe_globals())
    except (ImportError, AttributeError):  # before torch 2.5 or mmengine 0.10.8 nothing tells a foreign type from ours
        print(f'warning: {path} is read as it is. Go on only if you trust where it comes from.', file=sys.stderr)
        return
    try:
        with allowed:
            content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises half a dozen types
        raise ValueError(f'the checkpoint {path} cannot be read safely ({_reason(error)})') from None
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f'{path} is no checkpoint: it holds {type(content).__name__} instead of weights')


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f'{type(error).__name__}: {lines[0][:200]}' if lines else type(error).__name__


def pictures_of_config(model: nn.Module, count: int = 8) -> list[str]:
    """Files of the first pictures of the test data of a model's config; none where they are not there."""
    dataset = model.cfg.get('test_dataloader', {}).get('dataset', {})
    prefix = dataset.get('data_prefix') or {}
    folder = Path(dataset.get('data_root') or '', prefix.get('img_path') or prefix.get('img') or 'no such folder')
    if not folder.is_dir():
        return []
    files = (path for path in sorted(folder.rglob('*')) if path.suffix.lower() in ('.png', '.jpg', '.jpeg', '.webp'))
    return [str(path) for path, _ in zip(files, range(count))]


def cell_at(view: View, point: tuple[float, float]) -> tuple[int, int]:
    """Row and column of a step's result under a point of the picture."""
    size = view.panels[0].mixture.size
    return tuple(min(int(p * n / e), n - 1) for p, n, e in zip(point, size, view.extents[0]))


def draw_scene(scene: Scene, point: tuple[int, int]) -> str:
    """HTML: for each step a row of panels, each with the shares of ``point`` (y, x) and a line of plain English."""
    from sapa_mm.visualization import describe, draw_shares

    rows = []
    for number, view in enumerate(scene.views, 1):
        if not view.panels:
            continue
        row, column = cell_at(view, point)
        shares = [panel.mixture.at(row, column) for panel in view.panels]
        radius = min(max(RADII[0], *(s.reach for s in shares), 0), RADII[1])
        (h, w), (height, width) = view.panels[0].mixture.cells, view.panels[0].mixture.size
        cell = [f'{extent / n:.3g}' for extent, n in zip(view.extents[1], (h, w))]
        figures = []
        for panel, share in zip(view.panels, shares):
            text = describe(share)
            if share.reach > radius:
                text += ' Some lies farther away than is drawn.'
            untrained = ' <span class="untrained">Untrained: random weights.</span>' if panel.untrained else ''
            drawing = draw_shares(
                scene.picture, share, (point[0] + 0.5, point[1] + 0.5), view.extents[1], radius, f'{panel.name}. {text}'
            )
            figures.append(
                f'<figure>{drawing}<figcaption><b>{escape(panel.name)}</b>{untrained} {escape(panel.note)} '
                f'{escape(text)}</figcaption></figure>'
            )
        rows.append(
            f'<section class="stage"><h3>Step {number} of {len(scene.views)}: {h} x {w} becomes {height} x {width}</h3>'
            f'<p>{escape(view.title)}. A cell is {cell[0]} x {cell[1]} pixels. Point at row {row}, column {column}.</p>'
            f'<div class="panels">{"".join(figures)}</div></section>'
        )
    return '\n'.join(rows)


def mark(scene: Scene, point: tuple[int, int]) -> tuple[np.ndarray, int]:
    """The picture with the point and the coarsest step's window drawn into it, enlarged by whole pixels; the factor."""
    height, width = scene.picture.shape[:2]
    factor = max(1, round(640 / max(height, width)))
    picture = Image.fromarray(scene.picture).resize((width * factor, height * factor), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    line = max(2, round(max(picture.size) / 200))
    views = [view for view in scene.views if view.panels]
    for view in views:
        tall, wide = (e / n for e, n in zip(view.extents[1], view.panels[0].mixture.cells))
        y, x = view.panels[0].mixture.centre(*cell_at(view, point))
        box = [(x - 2) * wide, (y - 2) * tall, (x + 3) * wide, (y + 3) * tall]
        draw.rectangle([side * factor for side in box], outline='white', width=max(1, line // 2))
    y, x = ((p + 0.5) * factor for p in point)
    for radius, colour, thick in ((4 * line, 'black', line + 2), (4 * line, '#33ff66', line)):
        draw.line([(x - radius, y), (x + radius, y)], fill=colour, width=thick)
        draw.line([(x, y - radius), (x, y + radius)], fill=colour, width=thick)
    return np.asarray(picture), factor


class Player:
    """What the page calls: pictures, scenes and clicks; scenes are kept for the pictures that were seen last.

    Args:
        model: A model with upsamplers; None for the upsamplers alone.
        device: Where to compute.
        image: Picture to begin with, ``(H, W, 3)`` uint8. Defaults to a picture of the model's test data, or a
            generated one.
    """

    def __init__(self, model: nn.Module | None = None, device: str = 'cpu', image: np.ndarray | None = None) -> None:
        self.model = model
        self.device = device
        self.files = [] if model is None else pictures_of_config(model)
        self.image = self.example(0) if image is None else image
        self._scenes: dict = {}

    def example(self, number: int) -> np.ndarray:
        """A picture of the model's test data, or a generated one."""
        if self.files:
            return read_picture(self.files[number % len(self.files)])
        return draw_picture(number)

    def scene(self, picture: np.ndarray, names: list[str] | tuple[str, ...] = FIRST) -> Scene:
        """All that is computed before the first click."""
        key = picture.tobytes(), picture.shape, tuple(names)
        if key not in self._scenes:
            if len(self._scenes) >= 8:
                self._scenes.pop(next(iter(self._scenes)), None)
            if self.model is None:
                self._scenes[key] = scene_of_picture(picture, names, self.device)
            else:
                self._scenes[key] = scene_of_model(self.model, picture)
        return self._scenes[key]

    def show(
        self, picture: np.ndarray, point: tuple[int, int] | None, names=FIRST
    ) -> tuple[np.ndarray, str, tuple[int, int]]:
        """The marked picture, the panels, and the point ``(y, x)``: the one asked for, or one on an edge."""
        scene = self.scene(picture, names)
        if point is None:
            point = strongest_edge(scene.picture)
        point = tuple(min(max(int(p), 0), side - 1) for p, side in zip(point, scene.picture.shape))
        return mark(scene, point)[0], draw_scene(scene, point), point


def strongest_edge(picture: np.ndarray) -> tuple[int, int]:
    """Where the picture, smoothed, changes most, away from its border."""
    pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1).float()[None]
    smooth = F.avg_pool2d(F.pad(pixels, (2, 2, 2, 2), mode='replicate'), 5, 1)[0]
    change = sum(x.abs().sum(0) for x in (F.pad(smooth.diff(dim=1), (0, 0, 0, 1)), F.pad(smooth.diff(dim=2), (0, 1))))
    border = [side // 6 for side in change.shape]
    inside = change[border[0] : change.shape[0] - border[0], border[1] : change.shape[1] - border[1]]
    row, column = divmod(int(inside.argmax()), inside.shape[1])
    return row + border[0], column + border[1]


def build_page(player: Player):
    """The page, a ``gradio.Blocks``."""
    import gradio as gr

    alone = player.model is None
    what = (
        'The upsamplers work on colours and blurs of the picture itself. No network is involved.'
        if alone
        else f'The upsamplers of {Path(player.model.cfg.filename or "a model").name}, and others on the same features.'
    )
    start, panels, first = player.show(player.image, None)

    def click(picture, names, event: gr.SelectData):
        seen = player.scene(picture, names)
        factor = mark(seen, (0, 0))[1]
        return player.show(picture, (event.index[1] // factor, event.index[0] // factor), names)

    def panels_at(y: int, x: int) -> str:
        return player.show(player.image, (y, x))[1]

    def again(picture, names, point):
        return player.show(picture, point, names)

    def another(number, names):
        picture = player.example(number + 1)
        return number + 1, picture, *player.show(picture, None, names)

    def upload(path, names):
        try:
            picture = read_picture(path)
            return picture, *player.show(picture, None, names)
        except (ValueError, RuntimeError) as error:
            raise gr.Error(str(error)) from None

    with gr.Blocks(title='sapa_mm: of what is a point mixed?', analytics_enabled=False) as page:
        gr.Markdown(f'# Of what is a point mixed?\nClick on the picture. {what}')
        picture, point, number = gr.State(player.image), gr.State(first), gr.State(0)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                shown = gr.Image(
                    start, show_label=False, interactive=False, buttons=[], elem_id='picture', format='png',
                    alt_text='The picture; click to choose a point',
                )  # fmt: skip
                gr.Markdown('The cross is the point. The white frames are 5 x 5 cells of each step.')
                with gr.Row():
                    next_picture = gr.Button('Another picture', elem_id='another', size='md', min_width=120)
                    own = gr.UploadButton('Your picture', file_types=['image'], size='md', min_width=120)
                with gr.Accordion('Upsamplers', open=False, visible=alone):
                    names = gr.CheckboxGroup(
                        [(f'{name} (untrained)' if has else name, name) for name, has in choices().items()],
                        value=list(FIRST),
                        show_label=False,
                        container=False,
                    )
                gr.Markdown(
                    'Each panel shows the cells around the point. A number is the share of its cell in per cent. '
                    'Dark grey lies outside the picture. Blue dots are samples between cells.'
                )
            with gr.Column(scale=5, min_width=320):
                out = gr.HTML(panels, elem_id='panels')
        result = [shown, out, point]
        shown.select(click, [picture, names], result, show_progress='hidden')
        names.change(again, [picture, names, point], result, show_progress='minimal')
        next_picture.click(another, [number, names], [number, picture, *result], show_progress='minimal')
        own.upload(upload, [own, names], [picture, *result], show_progress='minimal')
        # for programs: the same by a point
        gr.api(panels_at, api_name='panels')
    return page


def launch(page, host: str, port: int, block: bool = True):
    """Serve the page.

    Raises:
        OSError: If the port is taken or the host is not this computer's.
    """
    import gradio as gr
    from starlette.middleware import Middleware

    theme = gr.themes.Default(font=['system-ui', 'sans-serif'], font_mono=['ui-monospace', 'monospace'])
    return page.launch(
        server_name=host, server_port=port, share=False, quiet=True, ssr_mode=False, theme=theme, css=CSS,
        prevent_thread_lock=not block, footer_links=[], enable_monitoring=False, mcp_server=False,
        app_kwargs=dict(middleware=[Middleware(_Policy)]),
    )  # fmt: skip


class _Policy:
    """Adds to every answer that the page may ask no other server."""

    def __init__(self, app) -> None:
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        async def answer(message):
            if message['type'] == 'http.response.start':
                message['headers'] = [*message.get('headers', []), (b'content-security-policy', POLICY.encode())]
            await send(message)

        await self.app(scope, receive, answer if scope['type'] == 'http' else send)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m sapa_mm.play', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', nargs='?', help='config of an mmseg or mmdet model')
    parser.add_argument('checkpoint', nargs='?', help='its checkpoint')
    parser.add_argument('--image', help='picture to begin with')
    parser.add_argument('--device', default='cpu', help='default: cpu')
    parser.add_argument('--host', default='127.0.0.1', help='address to listen at (default: 127.0.0.1)')
    parser.add_argument('--port', type=int, default=7860, help='default: 7860')
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    if args.config and not args.checkpoint:
        fail(f'a config needs its checkpoint: python -m sapa_mm.play {args.config} CHECKPOINT')
    # before gradio is imported: it asks its makers' server for its version otherwise
    os.environ.update(GRADIO_ANALYTICS_ENABLED='False', HF_HUB_OFFLINE='1', HF_HUB_DISABLE_TELEMETRY='1')
    try:
        import gradio  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        fail(f"the page needs {error.name}: pip install 'sapa-mm[play]'")
    try:
        torch.empty(1, device=args.device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        fail(f'--device {args.device} cannot be used ({_reason(error)})')
    if not 1 <= args.port <= 65535:
        fail(f'--port must be from 1 to 65535, got {args.port}')
    try:
        image = None if args.image is None else read_picture(args.image)
        model = None if args.config is None else load_model(args.config, args.checkpoint, args.device)
        page = build_page(Player(model, args.device, image))
    except ValueError as error:
        fail(error)
    print(f'The page is at http://{args.host}:{args.port} (Ctrl+C ends it)', flush=True)
    try:
        launch(page, args.host, args.port)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE or re.search('port', str(error))
        fail(
            f'port {args.port} of {args.host} is taken; take another with --port' if taken else f'{args.host}: {error}'
        )


if __name__ == '__main__':
    main()
