// SPDX-License-Identifier: Apache-2.0
// The loops of window.h.

namespace sapa_mm {
namespace {

// A block of SLOTS queries x TAPS neighbouring taps stays in registers while the channels pass.

template <typename T, int SLOTS, int TAPS>
SAPA_MM_INLINE void correlate_block(const T* queries, int64_t slot_stride, int64_t query_stride, const T* keys,
                                    int64_t key_stride, int64_t channels, T* scores, int64_t score_slot_stride,
                                    int64_t score_stride, bool accumulate) {
  Vector<T> sum[SLOTS][TAPS] = {};
  if (accumulate) {
    SAPA_MM_UNROLLED (s, SLOTS)
      SAPA_MM_UNROLLED (t, TAPS) sum[s][t] = load(scores + s * score_slot_stride + t * score_stride);
  }
  for (int64_t c = 0; c < channels; ++c) {
    Vector<T> q[SLOTS];
    SAPA_MM_UNROLLED (s, SLOTS) q[s] = load(queries + s * slot_stride + c * query_stride);
    SAPA_MM_UNROLLED (t, TAPS) {
      const Vector<T> k = load(keys + c * key_stride + t);
      SAPA_MM_UNROLLED (s, SLOTS) sum[s][t] += q[s] * k;
    }
  }
  SAPA_MM_UNROLLED (s, SLOTS)
    SAPA_MM_UNROLLED (t, TAPS) store(scores + s * score_slot_stride + t * score_stride, sum[s][t]);
}

template <typename T, int SLOTS>
void correlate_slots(const T* queries, int64_t query_stride, const Window<T>& keys, int64_t channels, int64_t width,
                     T* scores, int64_t score_stride, bool accumulate) {
  const int K = keys.kernel_size;
  const int64_t slot_stride = channels * query_stride, score_slot_stride = K * K * score_stride;
  for (int64_t x = 0; x < width; x += lanes<T>())
    for (int ky = 0; ky < K; ++ky)
      for_each_block(K, [&](int kx, auto taps) SAPA_MM_LAMBDA {
        correlate_block<T, SLOTS, decltype(taps)::value>(
            queries + x, slot_stride, query_stride, keys.rows[ky] + x + kx, keys.stride, channels,
            scores + (ky * K + kx) * score_stride + x, score_slot_stride, score_stride, accumulate);
      });
}

template <typename T>
void correlate(const T* queries, int64_t query_stride, const Window<T>& keys, int64_t channels, int slots,
               int64_t width, T* scores, int64_t score_stride, bool accumulate) {
  with_constant<1, 2, 3, 4>(slots, [&](auto n) {
    correlate_slots<T, decltype(n)::value>(queries, query_stride, keys, channels, width, scores, score_stride,
                                           accumulate);
  });
}

// A block of SLOTS outputs x CHANNELS stays in registers while the taps pass.

template <typename T, int SLOTS, int CHANNELS>
SAPA_MM_INLINE void assemble_block(const T* weights, int64_t weight_slot_stride, int64_t weight_stride,
                                   const Window<T>& values, int64_t offset, T* out, int64_t out_slot_stride,
                                   int64_t out_stride) {
  const int K = values.kernel_size;
  Vector<T> sum[SLOTS][CHANNELS] = {};
  for (int ky = 0; ky < K; ++ky) {
    const T* row = values.rows[ky] + offset;
    for (int kx = 0; kx < K; ++kx) {
      Vector<T> v[CHANNELS];
      SAPA_MM_UNROLLED (c, CHANNELS) v[c] = load(row + c * values.stride + kx);
      SAPA_MM_UNROLLED (s, SLOTS) {
        const Vector<T> w = load(weights + s * weight_slot_stride + (ky * K + kx) * weight_stride);
        SAPA_MM_UNROLLED (c, CHANNELS) sum[s][c] += w * v[c];
      }
    }
  }
  SAPA_MM_UNROLLED (s, SLOTS)
    SAPA_MM_UNROLLED (c, CHANNELS) store(out + s * out_slot_stride + c * out_stride, sum[s][c]);
}

template <typename T, int SLOTS>
void assemble_slots(const T* weights, int64_t weight_stride, const Window<T>& values, int64_t channels, int64_t width,
                    T* out, int64_t out_stride) {
  const int K = values.kernel_size;
  const int64_t weight_slot_stride = K * K * weight_stride, out_slot_stride = channels * out_stride;
  int64_t c = 0;
  for (; c + 4 <= channels; c += 4)
    for (int64_t x = 0; x < width; x += lanes<T>())
      assemble_block<T, SLOTS, 4>(weights + x, weight_slot_stride, weight_stride, values, c * values.stride + x,
                                  out + c * out_stride + x, out_slot_stride, out_stride);
  for (; c < channels; ++c)
    for (int64_t x = 0; x < width; x += lanes<T>())
      assemble_block<T, SLOTS, 1>(weights + x, weight_slot_stride, weight_stride, values, c * values.stride + x,
                                  out + c * out_stride + x, out_slot_stride, out_stride);
}

template <typename T>
void assemble(const T* weights, int64_t weight_stride, const Window<T>& values, int64_t channels, int slots,
              int64_t width, T* out, int64_t out_stride) {
  with_constant<1, 2, 3, 4>(slots, [&](auto n) {
    assemble_slots<T, decltype(n)::value>(weights, weight_stride, values, channels, width, out, out_stride);
  });
}

// A block of ROWS rows of the window x CHANNELS stays in registers while slots and kx pass. Every sum is taken in one
// order, (slot, kx), whatever the blocks are.

template <typename T, int ROWS, int CHANNELS>
SAPA_MM_INLINE void spread_block(const T* weights, int64_t weight_slot_stride, int64_t weight_stride, const T* grads,
                                 int64_t grad_slot_stride, int64_t grad_stride, T* const* rows, int64_t offset,
                                 int64_t row_stride, int K, int slots) {
  Vector<T> sum[ROWS][CHANNELS];
  SAPA_MM_UNROLLED (ky, ROWS)
    SAPA_MM_UNROLLED (c, CHANNELS) sum[ky][c] = load(rows[ky] + offset + c * row_stride);
  for (int s = 0; s < slots; ++s) {
    for (int kx = 0; kx < K; ++kx) {
      Vector<T> g[CHANNELS];
      SAPA_MM_UNROLLED (c, CHANNELS) g[c] = load(grads + s * grad_slot_stride + c * grad_stride - kx);
      SAPA_MM_UNROLLED (ky, ROWS) {
        const Vector<T> w = load(weights + s * weight_slot_stride + (ky * K + kx) * weight_stride - kx);
        SAPA_MM_UNROLLED (c, CHANNELS) sum[ky][c] += w * g[c];
      }
    }
  }
  SAPA_MM_UNROLLED (ky, ROWS)
    SAPA_MM_UNROLLED (c, CHANNELS) store(rows[ky] + offset + c * row_stride, sum[ky][c]);
}

template <typename T, int CHANNELS>
SAPA_MM_INLINE void spread_channels(const T* weights, int64_t weight_stride, const T* grads, int64_t grad_slot_stride,
                                    int64_t grad_stride, const MutableWindow<T>& into, int64_t offset, int slots) {
  const int K = into.kernel_size;
  for_each_block(K, [&](int ky, auto rows) SAPA_MM_LAMBDA {
    spread_block<T, decltype(rows)::value, CHANNELS>(weights + ky * K * weight_stride, K * K * weight_stride,
                                                     weight_stride, grads, grad_slot_stride, grad_stride,
                                                     into.rows + ky, offset, into.stride, K, slots);
  });
}

template <typename T>
void spread(const T* weights, int64_t weight_stride, const T* grads, int64_t grad_stride, const MutableWindow<T>& into,
            int64_t channels, int slots, int64_t width) {
  const int64_t grad_slot_stride = channels * grad_stride;
  int64_t c = 0;
  for (; c + 4 <= channels; c += 4)
    for (int64_t x = 0; x < width; x += lanes<T>())
      spread_channels<T, 4>(weights + x, weight_stride, grads + c * grad_stride + x, grad_slot_stride, grad_stride,
                            into, c * into.stride + x, slots);
  for (; c < channels; ++c)
    for (int64_t x = 0; x < width; x += lanes<T>())
      spread_channels<T, 1>(weights + x, weight_stride, grads + c * grad_stride + x, grad_slot_stride, grad_stride,
                            into, c * into.stride + x, slots);
}

}  // namespace

template <typename T>
template <Isa isa>
WindowLoops<T> WindowLoops<T>::make() {
  return {sapa_mm::correlate<T>, sapa_mm::assemble<T>, sapa_mm::spread<T>};
}
template WindowLoops<float> WindowLoops<float>::make<kIsa>();
template WindowLoops<double> WindowLoops<double>::make<kIsa>();

}  // namespace sapa_mm
