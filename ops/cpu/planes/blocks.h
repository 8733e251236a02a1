// SPDX-License-Identifier: Apache-2.0
// The walk over blocks of positions of the norms: all channels of a block stay in the cache of a thread, and are not
// moved.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "../channel_norm.h"
#include "layout.h"

namespace sapa_mm {

// Blocks of positions of a contiguous NCHW map, and the moves between it and planes.
template <typename scalar_t>
struct Blocks {
  using T = accumulate_t<scalar_t>;

  explicit Blocks(const at::Tensor& x)
      : channels(x.size(1)),
        area(x.size(2) * x.size(3)),
        per_image((area + kBlock - 1) / kBlock),
        count(x.size(0) * per_image) {}

  int64_t first(int64_t block) const { return block % per_image * kBlock; }
  int64_t size(int64_t block) const { return std::min(kBlock, area - first(block)); }
  // Of a map (N, H, W).
  int64_t position(int64_t block) const { return block / per_image * area + first(block); }

  void load(const at::Tensor& x, int64_t block, T* planes) const {
    const auto& loops = pack_loops<scalar_t>();
    const stored_t<scalar_t>* in = first_channel(x, block);
    for (int64_t c = 0; c < channels; ++c) loops.widen(in + c * area, planes + c * kBlock, size(block));
  }
  void store(const T* planes, const at::Tensor& x, int64_t block) const {
    const auto& loops = pack_loops<scalar_t>();
    stored_t<scalar_t>* out = first_channel(x, block);
    for (int64_t c = 0; c < channels; ++c) loops.narrow(planes + c * kBlock, out + c * area, size(block));
  }

  int64_t channels, area, per_image, count;

 private:
  stored_t<scalar_t>* first_channel(const at::Tensor& x, int64_t block) const {
    return data_of<scalar_t>(x) + block / per_image * channels * area + first(block);
  }
};

// Calls work(planes, block) for every block of x, normalised, and writes the moments of its positions. `make_work`
// gives each thread its own.
template <typename scalar_t, typename MakeWork>
void for_each_normalized_block(const at::Tensor& x, double eps, const at::Tensor& mean, const at::Tensor& rstd,
                               const MakeWork& make_work) {
  using T = accumulate_t<scalar_t>;
  const Blocks<scalar_t> blocks(x);
  at::parallel_for(0, blocks.count, 1, [&](int64_t begin, int64_t end) {
    Buffer<T> planes(blocks.channels * kBlock), means(kBlock), rstds(kBlock);
    auto work = make_work();
    for (int64_t block = begin; block < end; ++block) {
      const int64_t size = blocks.size(block), at = blocks.position(block);
      blocks.load(x, block, planes.get());
      loops<ChannelLoops<T>>().normalize(planes.get(), blocks.channels, static_cast<T>(eps), means.get(), rstds.get());
      std::copy_n(means.get(), size, mean.mutable_data_ptr<T>() + at);
      std::copy_n(rstds.get(), size, rstd.mutable_data_ptr<T>() + at);
      work(planes.get(), block);
    }
  });
}

// A block of x as the forward normalised it, a block of gradients, and the moments of its positions. Beyond the
// positions of a short block all is zero, so that nothing of the block before reaches a sum.
template <typename scalar_t>
struct BackwardBlock {
  using T = accumulate_t<scalar_t>;

  BackwardBlock(const Blocks<scalar_t>& blocks, int64_t grad_channels)
      : blocks(blocks), planes(blocks.channels * kBlock), grads(grad_channels * kBlock), mean(kBlock), rstd(kBlock) {}

  void load(int64_t block, const at::Tensor& x, const Blocks<scalar_t>& grad_blocks, const at::Tensor& grad,
            const at::Tensor& means, const at::Tensor& rstds) {
    const int64_t size = blocks.size(block), at = blocks.position(block);
    if (size < kBlock) {
      std::memset(planes.get(), 0, blocks.channels * kBlock * sizeof(T));
      std::memset(grads.get(), 0, grad_blocks.channels * kBlock * sizeof(T));
      std::memset(mean.get(), 0, kBlock * sizeof(T));
      std::memset(rstd.get(), 0, kBlock * sizeof(T));
    }
    blocks.load(x, block, planes.get());
    grad_blocks.load(grad, block, grads.get());
    std::copy_n(means.const_data_ptr<T>() + at, size, mean.get());
    std::copy_n(rstds.const_data_ptr<T>() + at, size, rstd.get());
    loops<ChannelLoops<T>>().renormalize(planes.get(), blocks.channels, mean.get(), rstd.get());
  }

  const Blocks<scalar_t>& blocks;
  Buffer<T> planes, grads, mean, rstd;
};

constexpr int64_t kParts = 32;  // of the sums over positions, whatever the number of threads

// Sums over positions, the same for any number of threads: `work(sums, block)` for the blocks of a part in turn, then
// the parts in turn. Returns the sums of all.
template <typename T, typename MakeWork>
std::vector<T> sum_over_blocks(int64_t blocks, int64_t size, const MakeWork& make_work) {
  const int64_t parts = std::min(kParts, blocks);
  Buffer<T> sums(parts * size);
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    auto work = make_work();
    for (int64_t part = begin; part < end; ++part)
      for (int64_t block = part * blocks / parts; block < (part + 1) * blocks / parts; ++block)
        work(sums.get() + part * size, block);
  });
  std::vector<T> total(sums.get(), sums.get() + size);
  for (int64_t part = 1; part < parts; ++part)
    for (int64_t i = 0; i < size; ++i) total[i] += sums.get()[part * size + i];
  return total;
}

// From kLanes sums of each channel to one.
template <typename T>
void add_lanes(const T* sums, const at::Tensor& out) {
  T* to = out.mutable_data_ptr<T>();
  for (int64_t c = 0; c < out.numel(); ++c) {
    to[c] = 0;
    for (int lane = 0; lane < kLanes; ++lane) to[c] += sums[c * kLanes + lane];
  }
}

}  // namespace sapa_mm
