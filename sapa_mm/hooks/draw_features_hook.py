# SPDX-License-Identifier: Apache-2.0
"""Pictures of the upsamplers while a model is trained."""

from contextlib import ExitStack

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from sapa_mm.registry import HOOKS
from sapa_mm.visualization import draw_kernels, draw_stages, record_upsamplers, rgb_of


@HOOKS.register_module()
class DrawFeaturesHook(Hook):
    """At every validation, draw what the upsamplers make of one picture, and give it to the Visualizer's back ends.

    Draws the stages (:func:`sapa_mm.visualization.draw_stages`) as ``features``, and the kernels of a few points
    (:func:`sapa_mm.visualization.draw_kernels`) of the last stage as ``kernels``, with the iteration as step; of a
    picture that is cut into windows, the first window. Costs no forward pass of its own. Registered as
    ``sapa_mm.DrawFeaturesHook``::

        custom_hooks = [dict(type='sapa_mm.DrawFeaturesHook')]
        vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]

    Args:
        batch (int): Which batch of the validation, from 0; its first picture is drawn. Defaults to 0.
        points (list[tuple[int, int]], optional): Points ``(y, x)`` of the network's input whose kernels are drawn.
            Defaults to :func:`sapa_mm.visualization.choose_points`.
        neighbour (tuple[int, int], optional): Of the kernel maps, as in ``draw_stages``. Defaults to the top left.

    Raises:
        ValueError: When the run starts, if the model has no upsampler; when it draws, if a point or the neighbour is
            not there.
    """

    def __init__(
        self, batch: int = 0, points: list[tuple[int, int]] | None = None, neighbour: tuple[int, int] | None = None
    ) -> None:
        self.batch = batch
        self.points = points
        self.neighbour = neighbour
        self._recordings = ExitStack()

    def before_run(self, runner) -> None:
        """Refuse a model without upsampler before it is trained."""
        with record_upsamplers(runner.model):
            pass

    def before_val_iter(self, runner, batch_idx, data_batch=None) -> None:
        if batch_idx == self.batch and is_main_process():
            model = runner.model.module if is_model_wrapper(runner.model) else runner.model
            self._recording = self._recordings.enter_context(record_upsamplers(model))

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if batch_idx != self.batch or not is_main_process():
            return
        self._recordings.close()
        stages, step = self._recording.first, runner.iter
        if not stages:  # all of them are in a mask head that had no region
            return
        runner.visualizer.add_image('features', rgb_of(draw_stages(stages, self.neighbour)), step)
        drawn = [stage for stage in stages if stage.of_picture and stage.kernels is not None]
        if drawn and drawn[-1].picture is not None:
            runner.visualizer.add_image('kernels', rgb_of(draw_kernels(drawn[-1], self.points)), step)
