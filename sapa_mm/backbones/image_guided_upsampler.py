# SPDX-License-Identifier: Apache-2.0
"""A backbone whose maps are upsampled with its own input as guide."""

from torch import Tensor

from ..registry import MODELS, BaseModule


@MODELS.register_module()
class ImageGuidedUpsampler(BaseModule):
    """Any backbone, such as a plain ViT, with finer maps: an image-guided upsampler between it and what follows.

    A neck of the toolboxes does not see the image, so this stands in the place of the backbone and holds it.

    Args:
        backbone (dict): Config of a backbone; scope its type, such as ``mmseg.ResNet``.
        upsampler (dict): Config of a module that is called with ``(feature, image)``: ``sapa_mm.NAF``,
            ``sapa_mm.ColourAffiliation``, ``sapa_mm.SAPAStack``, ``sapa_mm.JBUStack`` or ``sapa_mm.CARAFEStack``; the
            stacks need ``in_channels`` and multiply sizes by 16.
        stride (int, optional): Give maps of the image's size divided by it, rounded up; for upsamplers that take a
            ``size``. Defaults to None: the upsampler's own size.
        frozen (bool): Keep the backbone as it is, in evaluation mode and without gradients. Defaults to False.
        init_cfg (dict or list[dict], optional): As any mmengine module.

    Raises:
        ValueError: If ``stride`` is no positive integer.
    """

    def __init__(
        self,
        backbone: dict,
        upsampler: dict,
        stride: int | None = None,
        frozen: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if stride is not None and (not isinstance(stride, int) or stride < 1):
            raise ValueError(f'stride must be a positive integer or None, got {stride!r}')
        self.stride = stride
        self.frozen = frozen
        self.backbone = MODELS.build(backbone)
        self.upsampler = MODELS.build(upsampler)
        if frozen:
            self.backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> 'ImageGuidedUpsampler':
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Upsample every map of the backbone.

        Args:
            image: ``(N, 3, H, W)``.

        Returns:
            As many maps as the backbone gives.
        """
        features = self.backbone(image)
        features = features if isinstance(features, (tuple, list)) else (features,)
        size = () if self.stride is None else ([-(-side // self.stride) for side in image.shape[2:]],)
        return tuple(self.upsampler(feature, image, *size) for feature in features)
