// SPDX-License-Identifier: Apache-2.0
// The loops of norms.h, written with the vector types of rows.inl, which stands before this file.

namespace sapa_mm {
namespace SAPA_MM_ISA {

template <typename T>
void normalize_channels(T* planes, int64_t channels, T eps, T* mean, T* rstd) {
  constexpr int L = lanes<T>();
  const T share = T(1) / static_cast<T>(channels);
  for (int64_t i = 0; i < kBlock; i += L) {
    Vector<T> sum = {}, squares = {};
    for (int64_t c = 0; c < channels; ++c) sum += load(planes + c * kBlock + i);
    const Vector<T> center = sum * all<T>(share);
    for (int64_t c = 0; c < channels; ++c) {
      const Vector<T> v = load(planes + c * kBlock + i) - center;
      squares += v * v;
    }
    const Vector<T> variance = squares * all<T>(share) + all<T>(eps);
    Vector<T> scale;
    for (int lane = 0; lane < L; ++lane)
      scale[lane] = T(1) / (sizeof(T) == 4 ? __builtin_sqrtf(variance[lane]) : __builtin_sqrt(variance[lane]));
    for (int64_t c = 0; c < channels; ++c)
      store(planes + c * kBlock + i, (load(planes + c * kBlock + i) - center) * scale);
    store(mean + i, center);
    store(rstd + i, scale);
  }
}

template <typename T>
void affine(const T* plane, T scale, T shift, T* out) {
  for (int64_t i = 0; i < kBlock; i += lanes<T>()) store(out + i, load(plane + i) * all<T>(scale) + all<T>(shift));
}

template <typename T>
void normalize_channels_again(T* planes, int64_t channels, const T* mean, const T* rstd) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t i = 0; i < kBlock; i += lanes<T>()) {
      T* x = planes + c * kBlock + i;
      store(x, (load(x) - load(mean + i)) * load(rstd + i));
    }
}

template <typename T>
void normalize_channels_backward(const T* planes, T* grads, int64_t channels, const T* rstd, const T* weight) {
  constexpr int L = lanes<T>();
  const T share = T(1) / static_cast<T>(channels);
  for (int64_t i = 0; i < kBlock; i += L) {
    Vector<T> grad_sum = {}, product_sum = {};
    for (int64_t c = 0; c < channels; ++c) {
      T* grad = grads + c * kBlock + i;
      if (weight) store(grad, load(grad) * all<T>(weight[c]));
      grad_sum += load(grad);
      product_sum += load(grad) * load(planes + c * kBlock + i);
    }
    const Vector<T> grad_mean = grad_sum * all<T>(share), product_mean = product_sum * all<T>(share);
    for (int64_t c = 0; c < channels; ++c) {
      T* grad = grads + c * kBlock + i;
      store(grad, (load(grad) - grad_mean - load(planes + c * kBlock + i) * product_mean) * load(rstd + i));
    }
  }
}

// Position i always adds to sum i % kLanes, whatever the width of the vectors.
template <typename T>
void add_products(const T* grads, const T* planes, int64_t channels, T* sums) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t i = 0; i < kBlock; i += lanes<T>()) {
      const Vector<T> grad = load(grads + c * kBlock + i);
      T* sum = sums + c * kLanes + i % kLanes;
      store(sum, load(sum) + (planes ? grad * load(planes + c * kBlock + i) : grad));
    }
}

// ROWS x VECTORS sums stay in registers while k passes.
template <typename T, int ROWS, int VECTORS>
SAPA_MM_INLINE void multiply_block(const T* panel, int64_t depth, const T* in, int64_t in_stride, T* out,
                                   int64_t out_stride, bool accumulate) {
  constexpr int L = lanes<T>();
  Vector<T> sum[ROWS][VECTORS] = {};
  if (accumulate) {
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) sum[r][v] = load(out + r * out_stride + v * L);
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vector<T> x[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) x[v] = load(in + k * in_stride + v * L);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const Vector<T> weight = all<T>(panel[k * kPanel + r]);
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) sum[r][v] += weight * x[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) store(out + r * out_stride + v * L, sum[r][v]);
}

template <typename T>
void multiply(const T* panel, int64_t depth, const T* in, int64_t in_stride, int64_t width, T* out, int64_t out_stride,
              bool accumulate) {
  constexpr int L = lanes<T>(), ROWS = SAPA_MM_VECTOR_BYTES == 64 ? 8 : 4;  // as many sums as there are registers for
  int64_t i = 0;
  for (int row = 0; row < kPanel; row += ROWS) {
    T* to = out + row * out_stride;
    for (i = 0; i + 2 * L <= width; i += 2 * L)
      multiply_block<T, ROWS, 2>(panel + row, depth, in + i, in_stride, to + i, out_stride, accumulate);
    for (; i < width; i += L)
      multiply_block<T, ROWS, 1>(panel + row, depth, in + i, in_stride, to + i, out_stride, accumulate);
  }
}

template <typename T>
const NormKernels<T>& norm_kernels() {
  static const NormKernels<T> table = {normalize_channels<T>,          affine<T>,       normalize_channels_again<T>,
                                       normalize_channels_backward<T>, add_products<T>, multiply<T>};
  return table;
}

template const NormKernels<float>& norm_kernels<float>();
template const NormKernels<double>& norm_kernels<double>();

}  // namespace SAPA_MM_ISA
}  // namespace sapa_mm
