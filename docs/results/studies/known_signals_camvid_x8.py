# SPDX-License-Identifier: Apache-2.0
# As known_signals_camvid_x4.py, from an eighth of the size.
_base_ = 'known_signals_camvid_x4.py'
options = {'model.ratio': 8}
