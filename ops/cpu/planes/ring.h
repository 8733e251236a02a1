// SPDX-License-Identifier: Apache-2.0
// Rows of a low-resolution map around a row of cells, as planes.
#pragma once

#include "layout.h"
#include "tiling.h"
#include "window.h"

namespace sapa_mm {

// kernel_size rows of all channels, `width` columns each, in a ring: the next row of cells needs one new row.
template <typename scalar_t>
class Ring {
 public:
  using T = accumulate_t<scalar_t>;

  // An undefined tensor gives a ring without channels.
  Ring(const at::Tensor& x, int kernel_size, int64_t width)
      : x_(x),
        channels_(x.defined() ? x.size(1) : 0),
        kernel_size_(kernel_size),
        width_(width),
        rows_(kernel_size * channels_ * width) {}

 protected:
  T* row(int64_t y) const { return rows_.get() + (y + 2 * kernel_size_) % kernel_size_ * channels_ * width_; }
  void clear(int64_t y) const { std::memset(row(y), 0, channels_ * width_ * sizeof(T)); }

  template <typename Number>
  MutableWindow<Number> window(int64_t cell_row) const {
    MutableWindow<Number> window{{}, width_, kernel_size_};
    for (int ky = 0; ky < kernel_size_; ++ky) window.rows[ky] = row(cell_row - kernel_size_ / 2 + ky);
    return window;
  }

  // Addresses of the positions [begin, end) of a row of a map whose channels lie side by side.
  stored_t<scalar_t>* const* addresses(const Map<scalar_t>& map, int64_t y, int64_t begin, int64_t end) {
    addresses_.resize(end - begin);
    for (int64_t x = begin; x < end; ++x) addresses_[x - begin] = map.at(0, y, x);
    return addresses_.data();
  }

  const PackLoops<T, stored_t<scalar_t>>& loops_ = pack_loops<scalar_t>();
  const at::Tensor x_;
  const int64_t channels_;
  const int kernel_size_;
  const int64_t width_;

 private:
  const Buffer<T> rows_;
  std::vector<stored_t<scalar_t>*> addresses_;
};

// What is read: rows padded with zeros, whose column 0 is column span.begin - radius of the map.
template <typename scalar_t>
struct ReadRing : Ring<scalar_t> {
  using Ring<scalar_t>::Ring;
  using T = typename Ring<scalar_t>::T;

  // The window of rows around `cell_row`, whose rows are packed unless they were for cell_row - 1 just before.
  Window<T> at(int64_t n, int64_t cell_row, const Span& span, bool is_next) {
    const int64_t radius = this->kernel_size_ / 2;
    if (this->channels_ > 0)
      for (int64_t y = is_next ? cell_row + radius : cell_row - radius; y <= cell_row + radius; ++y) pack(n, y, span);
    return this->template window<const T>(cell_row);
  }

 private:
  void pack(int64_t n, int64_t y, const Span& span) {
    const at::Tensor& x = this->x_;
    if (y < 0 || y >= x.size(2)) return this->clear(y);
    // Columns [begin, end) of the map are packed; the rest stays zero.
    const int64_t radius = this->kernel_size_ / 2, width = this->width_, channels = this->channels_;
    const int64_t begin = std::max<int64_t>(0, span.begin - radius), end = std::min(span.end + radius, x.size(3));
    const int64_t before = begin - (span.begin - radius);
    const Map<scalar_t> map(x, n);
    T* out = this->row(y);
    for (int64_t c = 0; c < channels; ++c) {
      std::fill_n(out + c * width, before, T(0));
      std::fill(out + c * width + before + end - begin, out + (c + 1) * width, T(0));
    }
    if (map.channels_last)
      return this->loops_.gather_columns(this->addresses(map, y, begin, end), end - begin, channels, out + before,
                                         width);
    for (int64_t c = 0; c < channels; ++c) {
      if (c + kPrefetchDistance < channels) prefetch(map.at(c + kPrefetchDistance, y, begin), end - begin);
      this->loops_.widen(map.at(c, y, begin), out + c * width + before, end - begin);
    }
  }
};

// What is summed: rows of gradients that the rows of cells around them add to. A row is written to the gradient when
// the last row of cells that reaches it has passed.
template <typename scalar_t>
struct SumRing : Ring<scalar_t> {
  using Ring<scalar_t>::Ring;
  using T = typename Ring<scalar_t>::T;

  // The window around `cell_row`; its last row is new and zero.
  MutableWindow<T> at(int64_t cell_row) {
    this->clear(cell_row + this->kernel_size_ / 2);
    return this->template window<T>(cell_row);
  }

  // Write row y, whose first column is the first of `owned`.
  void write(int64_t n, int64_t y, const Span& owned) {
    if (this->channels_ == 0) return;
    const Map<scalar_t> map(this->x_, n);
    const T* in = this->row(y);
    if (map.channels_last)
      return this->loops_.scatter_columns(in, this->width_, owned.size(), this->channels_,
                                          this->addresses(map, y, owned.begin, owned.end));
    for (int64_t c = 0; c < this->channels_; ++c)
      this->loops_.narrow(in + c * this->width_, map.at(c, y, owned.begin), owned.size());
  }
};

}  // namespace sapa_mm
