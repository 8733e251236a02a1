// SPDX-License-Identifier: Apache-2.0
// What the loops work on, and where it is in a map. A plane is a row of numbers in the type that sums are kept in,
// aligned and padded so that whole vectors can be read.
#pragma once

#include <ATen/OpMathType.h>

#include <cstring>
#include <memory>

#include "../../layout.h"
#include "packing.h"

namespace sapa_mm {

// The type that sums are kept in.
template <typename scalar_t>
using accumulate_t = at::opmath_type<scalar_t>;

template <typename scalar_t>
struct StoredAs {
  using type = scalar_t;
};
template <>
struct StoredAs<at::Half> {
  using type = HalfBits;
};
template <>
struct StoredAs<at::BFloat16> {
  using type = BFloat16Bits;
};
template <typename scalar_t>
using stored_t = typename StoredAs<scalar_t>::type;

// The loops between maps of scalar_t and planes.
template <typename scalar_t>
const PackLoops<accumulate_t<scalar_t>, stored_t<scalar_t>>& pack_loops() {
  return loops<PackLoops<accumulate_t<scalar_t>, stored_t<scalar_t>>>();
}

template <typename scalar_t>
stored_t<scalar_t>* data_of(const at::Tensor& x) {
  return reinterpret_cast<stored_t<scalar_t>*>(const_cast<scalar_t*>(x.const_data_ptr<scalar_t>()));
}

// One image of a dense map.
template <typename scalar_t>
struct Map {
  Map(const at::Tensor& x, int64_t n)
      : channels_last(layout_of(x) == at::MemoryFormat::ChannelsLast && x.size(1) > 1),
        channel(channels_last ? 1 : x.size(2) * x.size(3)),
        column(channels_last ? x.size(1) : 1),
        row(x.size(3) * column),
        data(data_of<scalar_t>(x) + n * x.size(1) * x.size(2) * x.size(3)) {}
  stored_t<scalar_t>* at(int64_t c, int64_t y, int64_t x) const { return data + c * channel + y * row + x * column; }

  bool channels_last;
  int64_t channel, column, row;  // strides
  stored_t<scalar_t>* data;
};

constexpr int64_t kPrefetchDistance = 4;  // channels

template <typename Stored>
inline void prefetch(const Stored* in, int64_t size) {
  for (int64_t i = 0; i < size; i += 64 / static_cast<int64_t>(sizeof(Stored))) __builtin_prefetch(in + i, 0, 2);
}

inline int64_t round_up(int64_t x, int64_t multiple) {
  return (x + multiple - 1) / multiple * multiple;
}

// Zeroed memory of a thread, aligned to a cache line; `margin` elements more stand before the first.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size, int64_t margin = 0) : memory_(new char[(size + margin) * sizeof(T) + 64]()) {
    data_ = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory_.get()) + 63) / 64 * 64) + margin;
  }
  T* get() const { return data_; }

 private:
  std::unique_ptr<char[]> memory_;
  T* data_;
};

}  // namespace sapa_mm
