# SPDX-License-Identifier: Apache-2.0
"""The page to play with: what it computes, what it refuses, and the page itself where gradio is installed."""

import re
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip('matplotlib')
pytest.importorskip('PIL')

from sapa_mm import VARIANTS, ColourAffiliation, build_upsampler, play
from sapa_mm.upsamplers import SAPA
from sapa_mm.visualization import bilinear_kernels, describe, draw_shares, mixture_of

POINTS = [(0, 0), (5, 7), (11, 13), (11, 0)]
EXACT = [name for name in play.choices() if name != 'ColourAffiliation']


@pytest.mark.parametrize('name', EXACT)
def test_shares_give_the_result(name):
    """What the page shows is what the upsampler does: the shares, applied to the feature, give its result."""
    torch.manual_seed(0)
    upsampler = build_upsampler(VARIANTS[name], 32, 32).eval()
    for parameter in upsampler.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    feature, guide = torch.randn(32, 6, 7), torch.randn(32, 12, 14)
    mixture = mixture_of(upsampler, feature, guide)
    with torch.no_grad():
        expected = upsampler(feature[None], guide[None])[0, 0]
    for point in POINTS:
        torch.testing.assert_close((mixture.at(*point).cells * feature[0]).sum(), expected[point], rtol=1e-4, atol=1e-5)


def test_shares_of_the_picture_guided():
    feature, image = torch.randn(2, 6, 7), torch.randn(3, 12, 14)
    expected = ColourAffiliation()(feature[None], image[None])[0, 0]
    mixture = mixture_of(ColourAffiliation(), feature, image)
    for point in POINTS:
        torch.testing.assert_close((mixture.at(*point).cells * feature[0]).sum(), expected[point], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match='outside the result of 12 x 14'):
        mixture.at(12, 0)


def test_bilinear_kernels():
    kernels = bilinear_kernels((4, 5), (8, 10), 3)
    upsampler = build_upsampler(dict(type='Bilinear'), 1, 1)
    mixture = mixture_of(upsampler, torch.zeros(1, 4, 5), torch.zeros(1, 8, 10))
    torch.testing.assert_close(kernels[:, 3, 4].view(3, 3), mixture.at(3, 4).cells[0:3, 1:4])


def test_line_and_drawing():
    """A kernel that looks one cell up; at the corner, the lost share is said and no number is drawn outside."""
    upsampler = SAPA(8, similarity='inner', kernel_size=3)
    feature, guide = torch.zeros(8, 4, 4), torch.zeros(8, 8, 8)
    feature[:, 0, 1] = guide[:, 2, 2] = 9 * torch.tensor([1.0, -1] * 4)
    mixture = mixture_of(upsampler, feature, guide)
    above, corner = mixture.at(2, 2), mixture.at(0, 0)
    assert describe(above).startswith('Largest share 100 %: 1 up. Window of 3 x 3. Spread as over 1.0 equal cells')
    assert '56 % lies beyond the border' in describe(corner) and '4.0 equal cells' in describe(corner)
    svg = draw_shares(np.zeros((16, 16, 3), np.uint8), above, (4, 4), (16, 16), 1)
    (text,) = re.findall(r'<text x="([\d.]+)" y="([\d.]+)"[^>]*>(\d+)<', svg)
    assert text == ('150.0', '50.0', '100')
    svg = draw_shares(np.zeros((16, 16, 3), np.uint8), corner, (0, 0), (16, 16), 1)
    assert re.findall(r'>(\d+)</text>', svg) == ['11'] * 4


def test_untrained_are_said_to_be():
    assert not any(play.choices()[name] for name in play.FIRST)
    player = play.Player()
    _, html, point = player.show(player.image, None, ['SAPA-I', 'SAPA-B'])
    captions = re.findall(r'<figcaption>(.*?)</figcaption>', html)
    assert len(captions) == 6 and ['Untrained' in caption for caption in captions] == [False, True] * 3
    _, other, _ = player.show(player.image, (point[0] // 2, point[1] // 2), ['SAPA-I', 'SAPA-B'])
    assert re.findall(r'<text.*?</text>', other) != re.findall(r'<text.*?</text>', html)
    with pytest.raises(ValueError, match="'SAPA-Z' is none of the upsamplers"):
        player.show(player.image, None, ['SAPA-Z'])


@pytest.mark.parametrize('shape', [(1, 1), (9, 900), (37, 53)])
def test_any_picture(shape):
    player = play.Player(image=np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    marked, html, point = player.show(player.image, (10_000, -3))
    assert html.count('<svg') == 12 and max(marked.shape) <= 1024 and point[1] == 0


class Decoder(nn.Module):
    """A detector in small: 13 x 19 pixels, padded to 16 x 32, and one upsampler from stride 8 to 4."""

    def __init__(self):
        super().__init__()
        from mmengine.model import ImgDataPreprocessor

        self.data_preprocessor = ImgDataPreprocessor(
            mean=[0.0] * 3, std=[1.0] * 3, bgr_to_rgb=True, pad_size_divisor=16
        )
        self.up = SAPA(4, similarity='gated')
        self.weight = nn.Parameter(torch.randn(4, 3))

    def forward(self, bgr):
        x = self.data_preprocessor(dict(inputs=[torch.from_numpy(bgr).permute(2, 0, 1)]))['inputs']
        x = torch.einsum('dc,nchw->ndhw', self.weight, x)
        return self.up(*(nn.functional.avg_pool2d(x, stride) for stride in (8, 4)))


def test_stages_of_a_model(monkeypatch):
    pytest.importorskip('mmengine')
    torch.manual_seed(0)
    model = Decoder().eval()
    monkeypatch.setattr(play, 'infer', lambda model, bgr: model(bgr))
    picture = np.random.default_rng(0).integers(0, 256, (13, 19, 3), dtype=np.uint8)
    scene = play.scene_of_model(model, picture)
    assert scene.picture.shape == (16, 32, 3)
    np.testing.assert_array_equal(scene.picture[:13, :19], picture)
    (view,) = scene.views
    assert [panel.name for panel in view.panels] == ['SAPA-G', 'Bilinear', 'SAPA-I', 'ColourAffiliation']
    assert view.extents == ((16, 32), (16, 32)) and play.cell_at(view, (15, 0)) == (3, 0)
    assert not any(panel.untrained for panel in view.panels)


def run(*arguments, block=()):
    code = f'import sys\nfor n in {block!r}: sys.modules[n] = None\nfrom sapa_mm import play\nplay.main(sys.argv[1:])'
    done = subprocess.run([sys.executable, '-c', code, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and not done.stdout, done.stdout + done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_without_gradio():
    assert run(block=('gradio',)) == "error: the page needs gradio: pip install 'sapa-mm[play]'"


def test_bad_input_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'gradio', sys)  # not used before these are found

    def line(*arguments):
        with pytest.raises(SystemExit) as end:
            play.main([str(argument) for argument in arguments])
        assert end.value.code == 2
        (found,) = [line for line in capsys.readouterr().err.splitlines() if 'warning' not in line]
        return found

    text = tmp_path / 'text.png'
    text.write_text('no picture')
    assert 'there is no picture nowhere.png' in line('--image', 'nowhere.png')
    assert 'cannot be read as a picture' in line('--image', text)
    assert 'needs its checkpoint' in line('x.py')
    assert '--device nonsense cannot be used' in line('--device', 'nonsense')
    assert '--port must be from 1 to 65535, got 0' in line('--port', 0)
    pytest.importorskip('mmengine')
    config, checkpoint = tmp_path / 'config.py', tmp_path / 'x.pth'
    assert f'there is no config {config}' in line(config, checkpoint)
    config.write_text('model = (')
    assert f'there is no checkpoint {checkpoint}' in line(config, checkpoint)
    checkpoint.write_bytes(b'nothing')
    assert 'cannot be read as a config (SyntaxError' in line(config, checkpoint)
    config.write_text('model = dict()\n')
    assert 'has no test_dataloader' in line(config, checkpoint)
    config.write_text('model = dict()\ntest_dataloader = dict()\n')
    assert 'not of mmseg or mmdet' in line(config, checkpoint)


@pytest.fixture(scope='module')
def address():
    """The real page on a free port."""
    pytest.importorskip('gradio')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    code = 'import sys; from sapa_mm import play; play.main(sys.argv[1:])'
    server = subprocess.Popen([sys.executable, '-c', code, '--port', str(port)], stdout=subprocess.PIPE, text=True)
    url = f'http://127.0.0.1:{port}'
    for _ in range(240):
        try:
            urllib.request.urlopen(url, timeout=30)
            break
        except OSError:
            assert server.poll() is None
            import time

            time.sleep(0.5)
    yield url, port
    server.terminate()
    server.wait(30)


def test_page(address):
    """It answers a point, asks nobody else, and a second one on its port says that it is taken."""
    client = pytest.importorskip('gradio_client').Client(address[0], verbose=False)
    first, second = (client.predict(y, x, api_name='/panels') for y, x in ((90, 90), (200, 40)))
    assert first.count('<svg') == second.count('<svg') == 12 and first != second
    with urllib.request.urlopen(address[0], timeout=60) as answer:
        assert "default-src 'self'" in answer.headers['Content-Security-Policy']
        served = answer.read().decode()
    assert 'fonts.googleapis.com' not in served and 'cdnjs' not in served
    command = [sys.executable, '-m', 'sapa_mm.play', '--port', str(address[1])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parent)
    assert done.returncode == 2
    assert f'error: port {address[1]} of 127.0.0.1 is taken' in done.stderr and 'Traceback' not in done.stderr
