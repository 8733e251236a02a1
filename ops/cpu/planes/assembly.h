// SPDX-License-Identifier: Apache-2.0
// From weights to an output: the windows of the cells of a visit mixed.
#pragma once

#include "walk.h"

namespace sapa_mm {

// Maps whose channels lie side by side are not packed: vectors run along the channels.
template <typename scalar_t>
class Assembly {
 public:
  using T = accumulate_t<scalar_t>;
  using Stored = stored_t<scalar_t>;

  Assembly(const at::Tensor& values, const at::Tensor& output, int kernel_size, const Visit<scalar_t>& visit)
      : values_(values),
        output_(output),
        kernel_size_(kernel_size),
        mixed_(packs(values) ? visit.make_planes(kChannelBlock) : Buffer<T>(0)),
        blank_(values.size(1)) {}

  static bool packs(const at::Tensor& values) { return !Map<scalar_t>(values, 0).channels_last; }

  // Channels [begin, end) with weights[(slot * K*K + tap) * stride + cell - span.begin]; `window` where values are
  // packed.
  void operator()(Visit<scalar_t>& visit, const T* weights, const Window<T>& window, int64_t begin, int64_t end) {
    if (!packs(values_)) return assemble_cells(visit, weights, begin, end);
    for (int64_t c = begin; c < end; c += kChannelBlock) {
      const int64_t channels = std::min(kChannelBlock, end - c);
      loops<WindowLoops<T>>().assemble(weights, visit.stride, window.from_channel(c), channels, visit.chunk.slots(),
                                       visit.width, mixed_.get(), visit.stride);
      visit.unpack_owned(mixed_.get(), visit.stride, channels, output_, c);
    }
  }

 private:
  void assemble_cells(const Visit<scalar_t>& visit, const T* weights, int64_t begin, int64_t end) {
    const Map<scalar_t> values(values_, visit.n), output(output_, visit.n);
    const Chunk& chunk = visit.chunk;
    for (int64_t cell = visit.span.begin; cell < visit.span.end; ++cell) {
      int count = 0;
      for (int ky = 0; ky < kernel_size_; ++ky)
        for (int kx = 0; kx < kernel_size_; ++kx) {
          const int64_t y = visit.cell_row - visit.radius + ky, x = cell - visit.radius + kx;
          if (y < 0 || y >= values_.size(2) || x < 0 || x >= values_.size(3)) continue;
          taps_[count] = ky * kernel_size_ + kx;
          addresses_[count++] = values.at(begin, y, x);
        }
      Stored* out[kMaxSlots];
      for (int i = 0; i < chunk.slots(); ++i) {
        const int64_t slot = chunk.slot + i % chunk.columns;
        out[i] = slot < visit.columns.count(cell)
                     ? output.at(begin, chunk.y + i / chunk.columns, visit.columns.first[cell] + slot)
                     : blank_.get();
      }
      pack_loops<scalar_t>().assemble_cell(weights + cell - visit.span.begin,
                                           kernel_size_ * kernel_size_ * visit.stride, visit.stride, taps_, addresses_,
                                           count, end - begin, chunk.slots(), out);
    }
  }

  const at::Tensor values_, output_;
  const int kernel_size_;
  const Buffer<T> mixed_;
  const Buffer<Stored> blank_;
  int taps_[kMaxKernelSize * kMaxKernelSize];
  const Stored* addresses_[kMaxKernelSize * kMaxKernelSize];
};

}  // namespace sapa_mm
