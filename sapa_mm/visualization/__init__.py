# SPDX-License-Identifier: Apache-2.0
"""Pictures of what the upsamplers do."""

from .affiliation import draw_affiliation

__all__ = ['draw_affiliation']
