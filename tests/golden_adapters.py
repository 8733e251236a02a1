# SPDX-License-Identifier: Apache-2.0
"""How each operator of the golden vectors is built and called here: the dict :data:`ADAPTERS` at the end.

To add an operator, add a line ``'its name in index.json': adapter``. An adapter takes a case, which is an entry of
``index.json`` (`kwargs` are the published constructor's, `shapes` those of its arrays), and returns two or three:

- the module, or None where the operator is a function. It gets the case's parameters and buffers by a strict
  ``load_state_dict``, under the published keys: those that differ are renamed by the module's own key map;
- ``call(module, inputs)``, `inputs` being a dict of tensors by name. It returns the outputs in the order of the case's
  arrays: one tensor, or a tuple or list of tensors or numbers;
- for cases with a `parameter_rule` whose published keys or shapes are not the module's own: the published shapes, a
  dict of tuples by published state-dict key. The parameters are made by that rule.

An adapter may skip what the installed toolboxes lack (``pytest.importorskip``). Everything else is the format's, in
``test_golden.py``.
"""

import pytest
from torch.nn import functional as F

from sapa_mm.depth import DepthAccuracy, SILogLoss
from sapa_mm.ops import deformable_assembly, deformable_scores, feature_assembly
from sapa_mm.ops.reference import affiliation_scores
from sapa_mm.upsamplers import (
    A2U,
    CARAFE,
    DLU,
    FADE,
    LDAAQU,
    NAF,
    SAPA,
    Bilinear,
    CARAFEStack,
    Deconv,
    DySample,
    FADELite,
    FaPNAlign,
    FlowAlign,
    FreqFusion,
    IndexNet,
    JBUStack,
    Nearest,
    PixelShuffle,
    ReSFU,
    SAPADeform,
    SAPAStack,
)
from sapa_mm.upsamplers.image_guided import JBUStep, attend

SAPA_ARGUMENTS = dict(
    dim_y='guide_channels', dim_x='in_channels', out_dim='out_channels', up_kernel_size='kernel_size',
    embedding_dim='embed_dims', qkv_bias='bias', v_embed='embed_value',
)  # fmt: skip
CARAFE_ARGUMENTS = dict(
    channels='in_channels', scale_factor='scale_factor', up_kernel='kernel_size', up_group='groups',
    encoder_kernel='encoder_kernel', encoder_dilation='encoder_dilation', compressed_channels='compressed_channels',
)  # fmt: skip
DYSAMPLE_ARGUMENTS = dict(
    in_channels='in_channels', scale='scale_factor', scale_factor='scale_factor', style='style', groups='groups',
    dyscope='dyscope',
)  # fmt: skip

SAPA_D_ARGUMENTS = dict(
    dim_y='guide_channels', dim_x='in_channels', up_factor='scale_factor', num_point='num_points', groups='groups',
    embedding_dim='embed_dims', qkv_bias='bias', high_offset='high_offset',
)  # fmt: skip
FREQ_FUSION_ARGUMENTS = dict(
    hr_channels='guide_channels', lr_channels='in_channels', feature_resample='resample',
    feature_resample_norm='resample_norm', feature_resample_group='resample_groups',
)  # fmt: skip
LDA_AQU_ARGUMENTS = dict(
    nh='num_heads', k_u='kernel_size', k_e='encoder_kernel', n_groups='groups', range_factor='offset_range',
    rpb='position_bias',
)  # fmt: skip
RESFU_ARGUMENTS = dict(
    dim_y='guide_channels', dim_x='in_channels', normx='norm_feature', normy='norm_guide', embedding_dim='embed_dims',
    gf_scale='filter_stride', gf_radius='radius', gf_eps='eps', kernel='kernel_size',
)  # fmt: skip
FADE_ARGUMENTS = dict(in_channels_en='guide_channels', in_channels_de='in_channels', up_kernel_size='kernel_size')


def sapa_arguments(published, similarity, norm, embedding_dim):
    published.pop('up_factor', None)  # the guide's size says it
    published.setdefault('dim_x', published['dim_y'])
    published.setdefault('embedding_dim', embedding_dim)
    return dict({SAPA_ARGUMENTS[k]: v for k, v in published.items()}, similarity=similarity, norm=norm)


def call_guided(module, inputs):
    return module(inputs['x'], inputs['y'])


def call_to_size(size):
    """Operators without a guide: here it gives the size, which the published ones compute."""

    def call(module, inputs):
        x = inputs['x']
        return module(x, x.new_empty(x.shape[0], 1, *size))

    return call


def call_levels(module, inputs):
    return module([inputs[name] for name in ('c1', 'c2', 'c3', 'c4')])


def nhwc(function):
    def call(_, inputs, kernel_size):
        moved = {name: x.movedim(-1, 1) for name, x in inputs.items()}
        return function(moved, kernel_size).movedim(1, -1)

    return call


def scores(inputs, kernel_size):
    return affiliation_scores(inputs['q'], inputs['k'], kernel_size)


def assembly(inputs, kernel_size):
    return feature_assembly(inputs['v'], inputs['attn'], kernel_size)


def raw_op(call):
    def build(case):
        kernel_size = case['kwargs']['kernel_size']
        return None, lambda module, inputs: call(module, inputs, kernel_size)

    return build


def build_sapa(similarity, norm='layer', embedding_dim=64):
    def build(case):
        kwargs = dict(case['kwargs'])
        kwargs.pop('q_mode', None)
        case_norm = norm if kwargs.pop('norm', True) else None
        return SAPA(**sapa_arguments(kwargs, similarity, case_norm, embedding_dim)), call_guided

    return build


def build_sapa_inner(case):
    norm = {'none': None, 'layernorm': 'layer'}[case['kwargs']['norm']]
    channels = case['shapes']['in:x'][1]
    return SAPA(channels, similarity='inner', norm=norm, kernel_size=case['kwargs']['up_kernel_size']), call_guided


def build_unguided(kind, arguments, **options):
    def build(case):
        kwargs = {arguments[k]: v for k, v in case['kwargs'].items()}
        return kind(**kwargs, **options), call_to_size(case['shapes']['out'][2:])

    return build


def build_interpolation(kind):
    def build(case):
        options = dict(case['kwargs'])
        size = [side * options['scale_factor'] for side in case['shapes']['in:x'][2:]]
        del options['scale_factor']  # the guide's size says it
        return kind(case['shapes']['in:x'][1], **options), call_to_size(size)

    return build


def build_deconv(case):
    kwargs = case['kwargs']
    module = Deconv(kwargs['in_channels'], scale_factor=kwargs['stride'], kernel_size=kwargs['kernel_size'])
    assert module.conv.padding == (kwargs['padding'],) * 2
    assert module.conv.output_padding == (kwargs['output_padding'],) * 2
    return module, call_to_size(case['shapes']['out'][2:])


def build_pixel_shuffle(case):
    kwargs = dict(case['kwargs'])
    assert kwargs.pop('padding') == kwargs['kernel_size'] // 2
    return PixelShuffle(**kwargs), call_to_size(case['shapes']['out'][2:])


def build_carafe_op(case):
    kwargs = case['kwargs']

    def call(_, inputs):
        return feature_assembly(inputs['x'], inputs['mask'], kwargs['kernel_size'], kwargs['group_size'])

    return None, call


def build_sapa_deform(case):
    kwargs = dict(case['kwargs'])
    kwargs.setdefault('dim_x', kwargs['dim_y'])
    norm = 'group' if kwargs.pop('norm', False) else None
    return SAPADeform(**{SAPA_D_ARGUMENTS[k]: v for k, v in kwargs.items()}, norm=norm), call_guided


def build_deform_qk(case):
    groups = case['kwargs']['groups']

    def call(_, inputs):
        return deformable_scores(inputs['q'], inputs['k'], inputs['offset'], groups).unflatten(1, (groups, -1))

    return None, call


def build_deform_av(case):
    groups = case['kwargs']['groups']

    def call(_, inputs):
        return deformable_assembly(inputs['v'], inputs['attn'].flatten(1, 2), inputs['offset'], groups)

    return None, call


def build_fade(kind, **options):
    def build(case):
        kwargs = dict(case['kwargs'])
        kwargs.setdefault('in_channels_de', kwargs['in_channels_en'])
        module = kind(**{FADE_ARGUMENTS[k]: v for k, v in kwargs.items()}, **options)
        return module, lambda module, inputs: module(inputs['de'], inputs['en'])

    return build


def build_indexnet(index):
    def build(case):
        kwargs = dict(case['kwargs'])

        def call(module, inputs):
            idx_de = module.indices(inputs['y'])
            # The encoder's index map, for learned downsampling: a softmax over the four positions of a block.
            blocks = F.pixel_unshuffle(idx_de, 2).unflatten(1, (-1, 4))
            idx_en = F.pixel_shuffle(blocks.softmax(2).flatten(1, 2), 2)
            module.indices = lambda guide: idx_de  # one pass for all, or BatchNorm would count the batch twice
            return idx_en, idx_de, call_guided(module, inputs)

        return IndexNet(kwargs.pop('inp'), index=index, **kwargs), call

    return build


def build_a2u(case):
    kwargs = case['kwargs']
    assert kwargs['downupsample_group'] == 1
    module = A2U(
        kwargs['c'],
        kernel_size=kwargs['up_kernel_size'],
        encoder_kernel=kwargs['encode_kernel_size'],
        share=kwargs['share'],
        downsample=True,
    )

    def call(module, inputs):
        x, y = inputs['x'], inputs['y']
        return module.downsampling_kernels(y), module.kernels(x, y), module(x, y)

    return module, call


def build_a2u_fork(case):
    return A2U(**case['kwargs']), lambda module, inputs: module(inputs['de'], inputs['en'])


def toolbox_upsample_cfg(published):
    """The `upsample_cfg` of the authors' versions of mmdet and mmseg, in the words of this package."""
    options = dict(published)
    kind = options.pop('type')
    options.pop('guided')
    if kind == 'sapa':
        options = {SAPA_ARGUMENTS[k]: v for k, v in options.items()}
        return dict(type='sapa_mm.SAPA', similarity='bilinear', norm='group', **options)
    type_, arguments = {
        'carafe': ('sapa_mm.CARAFE', CARAFE_ARGUMENTS),
        'dysample': ('sapa_mm.DySample', DYSAMPLE_ARGUMENTS),
    }[kind]
    return dict({arguments[k]: v for k, v in options.items()}, type=type_)


def build_matting_network(case):
    from sapa_mm.matting import GuidedMattingNet

    upsample_cfg = dict(type={'bilinear': 'sapa_mm.Bilinear', 'fade': 'sapa_mm.FADE'}[case['kwargs']['upsample']])
    return GuidedMattingNet(upsample_cfg), lambda module, inputs: module(inputs['image'])


def build_matting_loss(case):
    from sapa_mm.matting import MattingLoss

    def call(module, inputs):
        return module(inputs['pred'], *inputs['target'].split([1, 1, 3, 3, 3], 1))

    return MattingLoss(), call


def build_matting_metrics(case):
    from sapa_mm.matting import matting_errors

    assert case['kwargs'] == dict(norm_const=1000, sigma=1.4, step=0.1)

    def call(_, inputs):
        maps = (inputs[name].numpy() for name in ('pred', 'alpha', 'trimap'))
        return list(matting_errors(*maps, definition='mmagic').values())

    return None, call


def build_segformer(case):
    pytest.importorskip('mmseg')
    from sapa_mm.decode_heads import GuidedSegformerHead

    kwargs = case['kwargs']
    upsample_cfg = None
    if kwargs.get('upsample_mode') == 'fade':
        upsample_cfg = dict(type='sapa_mm.FADE')
    elif kwargs.get('upsample_mode') != 'bilinear':
        assert 'SAPAExp' in kwargs['upsampler']
        upsample_cfg = dict(
            type='sapa_mm.SAPA',
            similarity='gated',
            # SAPAExp(16, q_mode='gate', embedding_dim=8): read the width off the parameters
            embed_dims=case['shapes']['param:upsamplers.0.k.weight'][0],
        )
    head = GuidedSegformerHead(
        in_channels=kwargs['in_channels'],
        in_index=[0, 1, 2, 3],
        channels=kwargs['embed_dim'],
        num_classes=kwargs['num_classes'],
        norm_cfg=dict(type='BN'),
        published_form=True,
        upsample_cfg=upsample_cfg,
        dropout_ratio=0.1,
    )
    return head, call_levels


def build_fpn(case):
    pytest.importorskip('mmseg')
    from sapa_mm.necks import GuidedFPN

    kwargs = dict(case['kwargs'])
    upsample_cfg = toolbox_upsample_cfg(kwargs.pop('upsample_cfg'))
    return GuidedFPN(upsample_cfg=upsample_cfg, **kwargs), call_levels


def build_uper(case):
    pytest.importorskip('mmseg')
    from sapa_mm.decode_heads import GuidedUPerHead

    kwargs = dict(case['kwargs'])
    upsample_cfg = toolbox_upsample_cfg(kwargs.pop('upsample_cfg'))
    head = GuidedUPerHead(
        in_index=[0, 1, 2, 3], norm_cfg=dict(type='BN'), align_corners=False, upsample_cfg=upsample_cfg, **kwargs
    )
    return head, call_levels


def build_bts(case):
    pytest.importorskip('mmseg')
    from sapa_mm.depth.guided_bts_head import KITTI_FOCAL_LENGTH, GuidedBTSHead

    kwargs = case['kwargs']
    head = GuidedBTSHead(
        in_channels=kwargs['feat_out_channels'],
        channels=kwargs['num_features'],
        max_depth=kwargs['max_depth'],
        focal_length=KITTI_FOCAL_LENGTH if kwargs['dataset'] == 'kitti' else None,
    )
    return head, lambda head, inputs: head.decode([inputs[f'skip{i}'] for i in range(5)], inputs.get('focal'))


def build_silog(case):
    return SILogLoss(**case['kwargs']), lambda module, inputs: module(inputs['depth_est'], inputs['depth_gt'])


def build_depth_errors(case):
    def call(metric, inputs):
        depth, truth = (inputs[name].detach()[None] for name in ('depth_est', 'depth_gt'))
        metric.process(None, [dict(pred_depth_map=dict(data=depth), gt_depth_map=dict(data=truth))])
        return list(metric.compute_metrics(metric.results).values())

    return None, lambda _, inputs: call(DepthAccuracy(), inputs)


def renamed(published, arguments):
    """Published options by the names here; those that are the same are not listed."""
    return {arguments.get(name, name): value for name, value in published.items()}


def call_fused(module, inputs):
    return module.fuse(inputs['x'], inputs['y'])


def build_freq_fusion(case):
    kwargs = renamed(case['kwargs'], FREQ_FUSION_ARGUMENTS)
    assert kwargs.pop('scale_factor', 1) == 1 and kwargs.pop('up_group', 1) == 1  # the published code fails otherwise
    return FreqFusion(**kwargs), lambda module, inputs: module.refine(inputs['x'], inputs['y'])


def build_lda_aqu(case):
    kwargs = renamed(case['kwargs'], LDA_AQU_ARGUMENTS)
    kwargs.pop('scale_factor', None)  # the guide's size says it
    return LDAAQU(**kwargs), call_to_size(case['shapes']['out'][2:])


def build_resfu(case):
    return ReSFU(**renamed(case['kwargs'], RESFU_ARGUMENTS)), call_guided


def build_dlu(case):
    kwargs = renamed(case['kwargs'], dict(channels='in_channels', up_kernel='kernel_size'))
    assert kwargs.pop('up_group', 1) == 1  # the published code fails otherwise
    return DLU(**kwargs), call_to_size(case['shapes']['out'][2:])


def build_flow_align(gate):
    def build(case):
        kwargs = renamed(case['kwargs'], dict(inplane='in_channels', outplane='embed_dims'))
        return FlowAlign(**kwargs, gate=gate), call_guided if gate is None else call_fused

    return build


def build_fapn_align(case):
    kwargs = renamed(case['kwargs'], dict(in_nc='guide_channels', out_nc='in_channels'))
    if kwargs.get('norm') == 'GN':
        kwargs['norm'] = 'group'
    return FaPNAlign(**kwargs), call_fused


def build_stack(kind):
    def build(case):
        kwargs = case['kwargs']
        assert kwargs.get('kernel_size', 1) == 1  # of CARAFE's stack, not used by the published code
        channels = next(kwargs[name] for name in ('dim_x', 'feat_dim', 'dim') if name in kwargs)
        return kind(channels), lambda module, inputs: module(inputs['source'], inputs['guidance'])

    return build


def build_jbu_step(case):
    kwargs = renamed(case['kwargs'], dict(guidance_dim='guide_channels', key_dim='embed_dims'))
    kwargs.pop('feat_dim')  # of no use in the published code either
    return JBUStep(**kwargs), lambda module, inputs: module(inputs['source'], inputs['guidance'])


def build_naf_attention(case):
    kwargs = case['kwargs']
    (kernel_size,) = set(kwargs['kernel_size'])

    def call(_, inputs):
        scale = (inputs['q'].shape[1] // kwargs['num_heads']) ** -0.5
        return attend(inputs['q'], inputs['k'], inputs['v'], kwargs['num_heads'], kernel_size, scale)

    return None, call


def build_naf(case):
    size = tuple(case['shapes']['out'][2:])
    return NAF(**case['kwargs']), lambda module, inputs: module(inputs['features'], inputs['image'], size)


ADAPTERS = {
    'sapa.sim': raw_op(nhwc(scores)),
    'sapa.atn': raw_op(nhwc(assembly)),
    'sapa.qk (NCHW)': raw_op(lambda _, inputs, kernel_size: scores(inputs, kernel_size)),
    'sapa.av (NCHW)': raw_op(lambda _, inputs, kernel_size: assembly(inputs, kernel_size)),
    'SAPA-B': build_sapa('bilinear'),
    'SAPAExp (encoder_only)': build_sapa('bilinear'),
    'SAPAExp (cat)': build_sapa('plain'),
    'SAPAExp (gate)': build_sapa('gated'),
    'SAPA-I': build_sapa_inner,
    'SAPA-B (extension repo, GroupNorm)': build_sapa('bilinear', norm='group', embedding_dim=32),
    'nearest': build_interpolation(Nearest),
    'bilinear': build_interpolation(Bilinear),
    'deconv': build_deconv,
    'pixel shuffle': build_pixel_shuffle,
    'CARAFE': build_unguided(CARAFE, CARAFE_ARGUMENTS),
    'carafe (reassembly)': build_carafe_op,
    'DySample': build_unguided(DySample, DYSAMPLE_ARGUMENTS),
    'DySample+': build_unguided(DySample, DYSAMPLE_ARGUMENTS),
    'DySample+ (mmdet/mmseg fork)': build_unguided(DySample, DYSAMPLE_ARGUMENTS, scope_bias=True),
    'SAPA-D': build_sapa_deform,
    'deform_qk': build_deform_qk,
    'deform_av': build_deform_av,
    'FADE': build_fade(FADE),
    'FADE (H2L layout)': build_fade(FADE),
    'FADE without gate': build_fade(FADE, gating=False),
    'FADE-Lite': build_fade(FADELite),
    'IndexNet (HolisticIndexBlock)': build_indexnet('holistic'),
    'IndexNet (DepthwiseO2OIndexBlock)': build_indexnet('o2o'),
    'IndexNet (DepthwiseM2OIndexBlock)': build_indexnet('m2o'),
    'A2U': build_a2u,
    'A2U (mmdet fork A2UUp)': build_a2u_fork,
    'FreqFusion': build_freq_fusion,
    'LDA-AQU': build_lda_aqu,
    'ReSFU': build_resfu,
    'DLU': build_dlu,
    'SFNet FAM': build_flow_align(None),
    'SFNet FAM v2': build_flow_align('conv'),
    'SFNet FAM v2 (pooled gate)': build_flow_align('pooled'),
    'FaPN FAM': build_fapn_align,
    'FeatUp SAPA': build_sapa('bilinear'),
    'FeatUp SAPA stack': build_stack(SAPAStack),
    'FeatUp JBU': build_jbu_step,
    'FeatUp JBU stack': build_stack(JBUStack),
    'FeatUp CARAFE stack': build_stack(CARAFEStack),
    'NAF attention': build_naf_attention,
    'NAF': build_naf,
    'matting network': build_matting_network,
    'matting loss': build_matting_loss,
    'matting metrics': build_matting_metrics,
    'SegFormer head wiring': build_segformer,
    'FPN wiring': build_fpn,
    'UPerNet head wiring': build_uper,
    'BTS decoder': build_bts,
    'SILog loss': build_silog,
    'depth metrics': build_depth_errors,
}

#: Operators whose smallest case is too large for `data/golden`; folders of SAPA_MM_GOLDEN may have them.
TOO_LARGE = frozenset({'BTS decoder', 'FeatUp SAPA stack', 'FeatUp JBU stack', 'FeatUp CARAFE stack'})
