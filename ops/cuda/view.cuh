// SPDX-License-Identifier: Apache-2.0
// What kernels are written with. Nothing in the .cuh files is of torch, but the check of a launch, and of CUDA only a
// few words, so that a host compiler can run it all (tests/test_ops/cuda_on_host.h).
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#include <c10/cuda/CUDAException.h>

#define SAPA_MM_DYNAMIC_SHARED(type, name)                    \
  extern __shared__ __align__(16) unsigned char raw_shared[]; \
  type* const name = reinterpret_cast<type*>(raw_shared)
#define SAPA_MM_LAUNCH(kernel, blocks, shared_bytes, stream, ...)                             \
  kernel<<<static_cast<unsigned int>(blocks), kThreads, shared_bytes, stream>>>(__VA_ARGS__); \
  C10_CUDA_KERNEL_LAUNCH_CHECK()
#endif

namespace sapa_mm {

constexpr int kThreads = 256;  // of a block

// A tensor (N, C, H, W) of any strides.
template <typename scalar_t>
struct View {
  scalar_t* data;
  int64_t images, channels, height, width;
  int64_t n, c, y, x;  // strides

  __device__ scalar_t& at(int64_t image, int64_t channel, int64_t row, int64_t column) const {
    return data[image * n + channel * c + row * y + column * x];
  }
};

template <typename scalar_t>
View<const scalar_t> read_only(const View<scalar_t>& view) {
  return {view.data, view.images, view.channels, view.height, view.width, view.n, view.c, view.y, view.x};
}

// Neighbours of a row that are read and written at once.
template <typename scalar_t, int kCount>
struct alignas(kCount * sizeof(scalar_t)) Pack {
  scalar_t data[kCount];
};

template <int kCount, typename scalar_t>
__device__ Pack<scalar_t, kCount> pack_at(const scalar_t* x) {
  return *reinterpret_cast<const Pack<scalar_t, kCount>*>(x);
}

template <int kCount, typename scalar_t>
__device__ void put_pack(scalar_t* x, const Pack<scalar_t, kCount>& pack) {
  *reinterpret_cast<Pack<scalar_t, kCount>*>(x) = pack;
}

// Whether every row of a map consists of such packs.
template <int kCount, typename scalar_t>
bool has_packs(const View<scalar_t>& map) {
  const bool whole = map.width % kCount == 0 && map.n % kCount == 0 && map.c % kCount == 0 && map.y % kCount == 0;
  return whole && map.x == 1 && reinterpret_cast<uintptr_t>(map.data) % (kCount * sizeof(scalar_t)) == 0;
}

// Channels of a position that lie side by side in channels_last, and are read and written at once: 16 bytes. As many of
// these as kSectorVectors make a sector, the least that memory gives.
template <typename scalar_t>
constexpr int kVector = 16 / sizeof(scalar_t);
constexpr int kSectorVectors = 2;

// Whether every position of a map consists of such vectors.
template <typename scalar_t>
bool has_vectors(const View<scalar_t>& map) {
  constexpr int kCount = kVector<scalar_t>;
  const bool whole = map.channels % kCount == 0 && map.n % kCount == 0 && map.y % kCount == 0 && map.x % kCount == 0;
  return whole && map.c == 1 && reinterpret_cast<uintptr_t>(map.data) % 16 == 0;
}

}  // namespace sapa_mm
