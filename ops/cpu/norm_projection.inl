// SPDX-License-Identifier: Apache-2.0
// The loop of norm_projection.h.

namespace sapa_mm {
namespace {

// ROWS x VECTORS sums stay in registers while k passes.
template <typename T, int ROWS, int VECTORS>
SAPA_MM_INLINE void multiply_block(const T* panel, int64_t depth, const T* in, int64_t in_stride, T* out,
                                   int64_t out_stride, bool accumulate) {
  constexpr int L = lanes<T>();
  Vector<T> sum[ROWS][VECTORS] = {};
  if (accumulate) {
    SAPA_MM_UNROLLED (r, ROWS)
      SAPA_MM_UNROLLED (v, VECTORS) sum[r][v] = load(out + r * out_stride + v * L);
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vector<T> x[VECTORS];
    SAPA_MM_UNROLLED (v, VECTORS) x[v] = load(in + k * in_stride + v * L);
    SAPA_MM_UNROLLED (r, ROWS) {
      const Vector<T> weight = broadcast<T>(panel[k * kPanel + r]);
      SAPA_MM_UNROLLED (v, VECTORS) sum[r][v] += weight * x[v];
    }
  }
  SAPA_MM_UNROLLED (r, ROWS)
    SAPA_MM_UNROLLED (v, VECTORS) store(out + r * out_stride + v * L, sum[r][v]);
}

template <typename T>
void multiply(const T* panel, int64_t depth, const T* in, int64_t in_stride, int64_t width, T* out, int64_t out_stride,
              bool accumulate) {
  constexpr int L = lanes<T>(), ROWS = kVectorBytes == 64 ? 8 : 4;  // as many sums as there are registers for
  int64_t i = 0;
  for (int row = 0; row < kPanel; row += ROWS) {
    T* to = out + row * out_stride;
    for (i = 0; i + 2 * L <= width; i += 2 * L)
      multiply_block<T, ROWS, 2>(panel + row, depth, in + i, in_stride, to + i, out_stride, accumulate);
    for (; i < width; i += L)
      multiply_block<T, ROWS, 1>(panel + row, depth, in + i, in_stride, to + i, out_stride, accumulate);
  }
}

}  // namespace

template <typename T>
template <Isa isa>
MatrixLoops<T> MatrixLoops<T>::make() {
  return {sapa_mm::multiply<T>};
}
template MatrixLoops<float> MatrixLoops<float>::make<kIsa>();
template MatrixLoops<double> MatrixLoops<double>::make<kIsa>();

}  // namespace sapa_mm
