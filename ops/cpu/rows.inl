// SPDX-License-Identifier: Apache-2.0
// The loops of rows.h, written once with the compiler's vector types and compiled once per instruction set: the file
// that includes this one defines SAPA_MM_ISA (a namespace) and SAPA_MM_VECTOR_BYTES.

namespace sapa_mm {
namespace SAPA_MM_ISA {

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(SAPA_MM_VECTOR_BYTES), aligned(alignof(T)), may_alias));
};
template <typename T>
using Vector = typename VectorOf<T>::type;
template <typename T>
constexpr int lanes() {
  return SAPA_MM_VECTOR_BYTES / sizeof(T);
}

#define SAPA_MM_INLINE inline __attribute__((always_inline))
#define SAPA_MM_LAMBDA __attribute__((always_inline))

template <typename T>
SAPA_MM_INLINE Vector<T> load(const T* p) {
  return *reinterpret_cast<const Vector<T>*>(p);
}
template <typename T>
SAPA_MM_INLINE void store(T* p, Vector<T> v) {
  *reinterpret_cast<Vector<T>*>(p) = v;
}

template <typename T>
SAPA_MM_INLINE Vector<T> all(T x) {
  const Vector<T> zero = {};
  return zero + x;
}

// ---- correlate -----------------------------------------------------------------------------------------------------
// A block of SLOTS queries x TAPS neighbouring taps stays in registers while the channels pass.

template <typename T, int SLOTS, int TAPS>
SAPA_MM_INLINE void correlate_block(const T* queries, int64_t slot_stride, int64_t query_stride, const T* keys,
                                    int64_t key_stride, int64_t channels, T* scores, int64_t score_slot_stride,
                                    int64_t score_stride, bool accumulate) {
  Vector<T> sum[SLOTS][TAPS] = {};
  if (accumulate) {
#pragma GCC unroll 8
    for (int s = 0; s < SLOTS; ++s)
#pragma GCC unroll 8
      for (int t = 0; t < TAPS; ++t) sum[s][t] = load(scores + s * score_slot_stride + t * score_stride);
  }
  for (int64_t c = 0; c < channels; ++c) {
    Vector<T> q[SLOTS];
#pragma GCC unroll 8
    for (int s = 0; s < SLOTS; ++s) q[s] = load(queries + s * slot_stride + c * query_stride);
#pragma GCC unroll 8
    for (int t = 0; t < TAPS; ++t) {
      const Vector<T> k = load(keys + c * key_stride + t);
#pragma GCC unroll 8
      for (int s = 0; s < SLOTS; ++s) sum[s][t] += q[s] * k;
    }
  }
#pragma GCC unroll 8
  for (int s = 0; s < SLOTS; ++s)
#pragma GCC unroll 8
    for (int t = 0; t < TAPS; ++t) store(scores + s * score_slot_stride + t * score_stride, sum[s][t]);
}

template <typename T, int SLOTS>
void correlate_slots(const T* queries, int64_t query_stride, const Window<T>& keys, int64_t channels, int64_t width,
                     T* scores, int64_t score_stride, bool accumulate) {
  const int K = keys.kernel_size;
  const int64_t slot_stride = channels * query_stride, score_slot_stride = K * K * score_stride;
  for (int64_t x = 0; x < width; x += lanes<T>()) {
    for (int ky = 0; ky < K; ++ky) {
      for (int kx = 0; kx < K;) {
        const T* key = keys.rows[ky] + x + kx;
        T* score = scores + (ky * K + kx) * score_stride + x;
        const int taps = K - kx;
#define SAPA_MM_BLOCK(TAPS)                                                                                  \
  correlate_block<T, SLOTS, TAPS>(queries + x, slot_stride, query_stride, key, keys.stride, channels, score, \
                                  score_slot_stride, score_stride, accumulate);                              \
  kx += TAPS
        if (taps >= 5) {
          SAPA_MM_BLOCK(5);
        } else if (taps >= 3) {
          SAPA_MM_BLOCK(3);
        } else if (taps == 2) {
          SAPA_MM_BLOCK(2);
        } else {
          SAPA_MM_BLOCK(1);
        }
#undef SAPA_MM_BLOCK
      }
    }
  }
}

template <typename T>
void correlate(const T* queries, int64_t query_stride, const Window<T>& keys, int64_t channels, int slots,
               int64_t width, T* scores, int64_t score_stride, bool accumulate) {
  switch (slots) {
    case 1:
      return correlate_slots<T, 1>(queries, query_stride, keys, channels, width, scores, score_stride, accumulate);
    case 2:
      return correlate_slots<T, 2>(queries, query_stride, keys, channels, width, scores, score_stride, accumulate);
    case 3:
      return correlate_slots<T, 3>(queries, query_stride, keys, channels, width, scores, score_stride, accumulate);
    default:
      return correlate_slots<T, 4>(queries, query_stride, keys, channels, width, scores, score_stride, accumulate);
  }
}

// ---- assemble ------------------------------------------------------------------------------------------------------
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
#pragma GCC unroll 8
      for (int c = 0; c < CHANNELS; ++c) v[c] = load(row + c * values.stride + kx);
#pragma GCC unroll 8
      for (int s = 0; s < SLOTS; ++s) {
        const Vector<T> w = load(weights + s * weight_slot_stride + (ky * K + kx) * weight_stride);
#pragma GCC unroll 8
        for (int c = 0; c < CHANNELS; ++c) sum[s][c] += w * v[c];
      }
    }
  }
#pragma GCC unroll 8
  for (int s = 0; s < SLOTS; ++s)
#pragma GCC unroll 8
    for (int c = 0; c < CHANNELS; ++c) store(out + s * out_slot_stride + c * out_stride, sum[s][c]);
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
  switch (slots) {
    case 1:
      return assemble_slots<T, 1>(weights, weight_stride, values, channels, width, out, out_stride);
    case 2:
      return assemble_slots<T, 2>(weights, weight_stride, values, channels, width, out, out_stride);
    case 3:
      return assemble_slots<T, 3>(weights, weight_stride, values, channels, width, out, out_stride);
    default:
      return assemble_slots<T, 4>(weights, weight_stride, values, channels, width, out, out_stride);
  }
}

// ---- spread --------------------------------------------------------------------------------------------------------
// A block of ROWS rows of the window x CHANNELS stays in registers while slots and kx pass. Every sum is taken in one
// order, (slot, kx), whatever the blocks are.

template <typename T, int ROWS, int CHANNELS>
SAPA_MM_INLINE void spread_block(const T* weights, int64_t weight_slot_stride, int64_t weight_stride, const T* grads,
                                 int64_t grad_slot_stride, int64_t grad_stride, T* const* rows, int64_t offset,
                                 int64_t row_stride, int K, int slots) {
  Vector<T> sum[ROWS][CHANNELS];
#pragma GCC unroll 8
  for (int ky = 0; ky < ROWS; ++ky)
#pragma GCC unroll 8
    for (int c = 0; c < CHANNELS; ++c) sum[ky][c] = load(rows[ky] + offset + c * row_stride);
  for (int s = 0; s < slots; ++s) {
    for (int kx = 0; kx < K; ++kx) {
      Vector<T> g[CHANNELS];
#pragma GCC unroll 8
      for (int c = 0; c < CHANNELS; ++c) g[c] = load(grads + s * grad_slot_stride + c * grad_stride - kx);
#pragma GCC unroll 8
      for (int ky = 0; ky < ROWS; ++ky) {
        const Vector<T> w = load(weights + s * weight_slot_stride + (ky * K + kx) * weight_stride - kx);
#pragma GCC unroll 8
        for (int c = 0; c < CHANNELS; ++c) sum[ky][c] += w * g[c];
      }
    }
  }
#pragma GCC unroll 8
  for (int ky = 0; ky < ROWS; ++ky)
#pragma GCC unroll 8
    for (int c = 0; c < CHANNELS; ++c) store(rows[ky] + offset + c * row_stride, sum[ky][c]);
}

template <typename T, int CHANNELS>
SAPA_MM_INLINE void spread_channels(const T* weights, int64_t weight_stride, const T* grads, int64_t grad_slot_stride,
                                    int64_t grad_stride, const MutableWindow<T>& into, int64_t offset, int slots) {
  const int K = into.kernel_size;
  for (int ky = 0; ky < K;) {
    const T* weight = weights + ky * K * weight_stride;
    const int rows = K - ky;
#define SAPA_MM_BLOCK(ROWS)                                                                                           \
  spread_block<T, ROWS, CHANNELS>(weight, K * K * weight_stride, weight_stride, grads, grad_slot_stride, grad_stride, \
                                  into.rows + ky, offset, into.stride, K, slots);                                     \
  ky += ROWS
    if (rows >= 5) {
      SAPA_MM_BLOCK(5);
    } else if (rows >= 3) {
      SAPA_MM_BLOCK(3);
    } else if (rows == 2) {
      SAPA_MM_BLOCK(2);
    } else {
      SAPA_MM_BLOCK(1);
    }
#undef SAPA_MM_BLOCK
  }
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

// ---- normalisation -------------------------------------------------------------------------------------------------

// exp for vectors of float, to about 1 ulp on the normal range; results below 2^-126 are 0.
SAPA_MM_INLINE Vector<float> exponential(Vector<float> x) {
  typedef int32_t Integers __attribute__((vector_size(SAPA_MM_VECTOR_BYTES)));
  const Vector<float> zero = {};
  const Vector<float> low = zero - 87.3f, high = zero + 88.7f, magic = zero + 12582912.f;  // 1.5 * 2^23
  Vector<float> y = x < low ? low : x;
  y = y > high ? high : y;
  const Vector<float> shifted = y * 1.44269504f + magic;  // its low bits hold the rounded integer
  const Vector<float> n = shifted - magic;
  const Vector<float> r = y - n * 0.693145752f - n * 1.42860677e-6f;
  Vector<float> p = r * 1.98756915e-4f + 1.39819995e-3f;
  p = p * r + 8.33345205e-3f;
  p = p * r + 4.16657962e-2f;
  p = p * r + 1.66666657e-1f;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  const Integers power = ((Integers)shifted - (Integers)magic) << 23;
  Vector<float> result = (Vector<float>)((Integers)p + power);
  result = x < low ? zero : result;
  result = x > high ? zero + __builtin_inff() : result;
  return x == x ? result : x;  // NaN stays NaN
}

SAPA_MM_INLINE Vector<double> exponential(Vector<double> x) {
  Vector<double> result;
  for (int i = 0; i < lanes<double>(); ++i) result[i] = __builtin_exp(x[i]);
  return result;
}

template <typename T>
SAPA_MM_INLINE Vector<T> logarithm(Vector<T> x) {
  Vector<T> result;
  for (int i = 0; i < lanes<T>(); ++i) result[i] = sizeof(T) == 4 ? __builtin_logf(x[i]) : __builtin_log(x[i]);
  return result;
}

template <typename T>
SAPA_MM_INLINE Vector<T> sigmoid(Vector<T> x) {
  const Vector<T> zero = {}, one = zero + T(1);
  return one / (one + exponential(-x));
}

// h of the scores: what is divided by its sum. Softmax has its own path, which subtracts the maximum first.
template <typename T>
SAPA_MM_INLINE Vector<T> positive(Vector<T> x, Normalization normalization) {
  const Vector<T> zero = {}, one = zero + T(1);
  switch (normalization) {
    case Normalization::kRelu:
      return x < zero ? zero : x;
    case Normalization::kSigmoid:
      return sigmoid<T>(x);
    default: {
      const Vector<T> magnitude = x < zero ? x : -x, e = exponential(magnitude);
      // log(1 + e) loses e below the rounding of 1; there it is e
      const Vector<T> u = one + e;
      const Vector<T> log1p = u == one ? e : logarithm<T>(u) * (e / (u - one));
      return (x < zero ? zero : x) + log1p;
    }
  }
}

template <typename T>
SAPA_MM_INLINE Vector<T> positive_slope(Vector<T> x, Normalization normalization) {
  const Vector<T> zero = {}, one = zero + T(1);
  switch (normalization) {
    case Normalization::kRelu:
      return x > zero ? one : (x == x ? zero : x);
    case Normalization::kSigmoid: {
      const Vector<T> y = sigmoid<T>(x);
      return y * (one - y);
    }
    default:
      return sigmoid<T>(x);
  }
}

template <typename T>
void normalize(T* scores, int64_t stride, int taps, int64_t width, Normalization normalization, T* normalizer) {
  for (int64_t x = 0; x < width; x += lanes<T>()) {
    T* column = scores + x;
    Vector<T> sum = {};
    if (normalization == Normalization::kSoftmax) {
      Vector<T> top = load(column);
      for (int t = 1; t < taps; ++t) {
        const Vector<T> score = load(column + t * stride);
        top = score > top ? score : top;
      }
      for (int t = 0; t < taps; ++t) {
        const Vector<T> e = exponential(load(column + t * stride) - top);
        sum += e;
        store(column + t * stride, e);
      }
      store(normalizer + x, top + logarithm<T>(sum));
    } else {
      for (int t = 0; t < taps; ++t) {
        const Vector<T> h = positive<T>(load(column + t * stride), normalization);
        sum += h;
        store(column + t * stride, h);
      }
      sum += T(kEpsilon);
      store(normalizer + x, sum);
    }
    const Vector<T> zero = {}, scale = (zero + T(1)) / sum;
    for (int t = 0; t < taps; ++t) store(column + t * stride, load(column + t * stride) * scale);
  }
}

template <typename T>
void weights_again(T* scores, int64_t stride, int taps, int64_t width, Normalization normalization,
                   const T* normalizer) {
  for (int64_t x = 0; x < width; x += lanes<T>()) {
    T* column = scores + x;
    const Vector<T> n = load(normalizer + x);
    Vector<T> sum = {};
    for (int t = 0; t < taps; ++t) {
      const Vector<T> score = load(column + t * stride);
      const Vector<T> weight =
          normalization == Normalization::kSoftmax ? exponential(score - n) : positive<T>(score, normalization) / n;
      sum += weight;
      store(column + t * stride, weight);
    }
    if (normalization != Normalization::kSoftmax) continue;
    // A large normaliser is rounded coarsely, for all taps alike; the sum takes that out again.
    const Vector<T> zero = {}, scale = (zero + T(1)) / sum;
    for (int t = 0; t < taps; ++t) store(column + t * stride, load(column + t * stride) * scale);
  }
}

template <typename T>
void normalize_backward(const T* weights, const T* scores, T* grads, int64_t stride, int taps, int64_t width,
                        Normalization normalization, const T* normalizer) {
  for (int64_t x = 0; x < width; x += lanes<T>()) {
    Vector<T> mean = {};
    for (int t = 0; t < taps; ++t) mean += load(weights + t * stride + x) * load(grads + t * stride + x);
    for (int t = 0; t < taps; ++t) {
      const Vector<T> centred = load(grads + t * stride + x) - mean;
      const Vector<T> slope =
          normalization == Normalization::kSoftmax
              ? load(weights + t * stride + x)
              : positive_slope<T>(load(scores + t * stride + x), normalization) / load(normalizer + x);
      store(grads + t * stride + x, slope * centred);
    }
  }
}

// ---- packing -------------------------------------------------------------------------------------------------------
// Half and bfloat16 come as their bits and are widened and rounded (to nearest even) with integer operations, which
// every instruction set has.

typedef uint32_t Bits __attribute__((vector_size(SAPA_MM_VECTOR_BYTES)));
typedef uint16_t NarrowBits __attribute__((vector_size(SAPA_MM_VECTOR_BYTES / 2), aligned(2), may_alias));

template <typename T, typename Stored>
struct Convert;

template <typename T>
struct Convert<T, T> {
  static SAPA_MM_INLINE Vector<T> read(const T* p) { return load(p); }
  static SAPA_MM_INLINE void write(T* p, Vector<T> v) { store(p, v); }
};

template <>
struct Convert<float, BFloat16Bits> {
  static SAPA_MM_INLINE Vector<float> read(const BFloat16Bits* p) {
    return (Vector<float>)(__builtin_convertvector(*reinterpret_cast<const NarrowBits*>(p), Bits) << 16);
  }
  static SAPA_MM_INLINE void write(BFloat16Bits* p, Vector<float> v) {
    const Bits bits = (Bits)v;
    const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Bits quiet = (bits >> 16) | 0x40;  // NaN stays NaN
    *reinterpret_cast<NarrowBits*>(p) = __builtin_convertvector(v == v ? rounded : quiet, NarrowBits);
  }
};

template <>
struct Convert<float, HalfBits> {
  static SAPA_MM_INLINE Vector<float> read(const HalfBits* p) {
    const Bits h = __builtin_convertvector(*reinterpret_cast<const NarrowBits*>(p), Bits);
    const Bits magnitude = (h & 0x7fff) << 13, exponent = magnitude & 0x0f800000u;
    const Bits zero = {};
    const Bits normal = magnitude + (112u << 23);  // exponent bias 127 instead of 15
    const Bits special = magnitude + (224u << 23);
    const Bits subnormal = (Bits)((Vector<float>)(magnitude + (113u << 23)) - (Vector<float>)(zero + (113u << 23)));
    Bits result = exponent == 0x0f800000u ? special : normal;
    result = exponent == 0u ? subnormal : result;
    return (Vector<float>)(result | ((h & 0x8000) << 16));
  }
  static SAPA_MM_INLINE void write(HalfBits* p, Vector<float> v) {
    const Bits bits = (Bits)v, sign = bits & 0x80000000u, magnitude = bits ^ sign, zero = {};
    const Bits normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    const Bits magic = zero + (126u << 23);  // the ulp of 0.5 is the least subnormal half
    const Bits subnormal = (Bits)((Vector<float>)magnitude + (Vector<float>)magic) - magic;
    Bits result = magnitude < (113u << 23) ? subnormal : normal;
    result = magnitude >= (143u << 23) ? zero + 0x7c00 : result;
    result = magnitude > (255u << 23) ? zero + 0x7e00 : result;
    *reinterpret_cast<NarrowBits*>(p) = __builtin_convertvector(result | (sign >> 16), NarrowBits);
  }
};

// One element by way of a whole vector.
template <typename T, typename Stored>
SAPA_MM_INLINE T read_one(const Stored* p) {
  Stored buffer[lanes<T>()] = {};
  buffer[0] = *p;
  return Convert<T, Stored>::read(buffer)[0];
}
template <typename T, typename Stored>
SAPA_MM_INLINE void write_one(Stored* p, T value) {
  Stored buffer[lanes<T>()];
  Vector<T> v = {};
  v[0] = value;
  Convert<T, Stored>::write(buffer, v);
  *p = buffer[0];
}

// The even (or odd) elements of two vectors, and two vectors interleaved (first or second half).
template <typename T>
struct Shuffle {
  typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> Index __attribute__((vector_size(SAPA_MM_VECTOR_BYTES)));
  typedef T Aligned __attribute__((vector_size(SAPA_MM_VECTOR_BYTES)));

  static SAPA_MM_INLINE Vector<T> pick(Vector<T> a, Vector<T> b, Index index) {
#if defined(__clang__)  // has no shuffle by a vector of indices, but sees one here
    Vector<T> result;
    for (int i = 0; i < lanes<T>(); ++i) result[i] = index[i] < lanes<T>() ? a[index[i]] : b[index[i] - lanes<T>()];
    return result;
#else
    return __builtin_shuffle((Aligned)a, (Aligned)b, index);
#endif
  }
  static SAPA_MM_INLINE Vector<T> every_second(Vector<T> a, Vector<T> b, int from) {
    Index index;
    for (int i = 0; i < lanes<T>(); ++i) index[i] = 2 * i + from;
    return pick(a, b, index);
  }
  static SAPA_MM_INLINE Vector<T> interleaved(Vector<T> a, Vector<T> b, int half) {
    Index index;
    for (int i = 0; i < lanes<T>(); ++i) index[i] = half * lanes<T>() / 2 + i / 2 + i % 2 * lanes<T>();
    return pick(a, b, index);
  }
};

// Calls vector(i) for i = 0, L, 2 L ... and once more for the last L of `size`, which overlaps the one before; where
// there are fewer, single(i) for each.
template <int L, typename Vectors, typename Single>
SAPA_MM_INLINE void for_each_vector(int64_t size, const Vectors& vector, const Single& single) {
  if (size < L) {
    for (int64_t i = 0; i < size; ++i) single(i);
    return;
  }
  for (int64_t i = 0; i + L <= size; i += L) vector(i);
  if (size % L != 0) vector(size - L);
}

template <typename T, typename Stored>
void widen(const Stored* in, T* out, int64_t size) {
  for_each_vector<lanes<T>()>(
      size, [&](int64_t i) SAPA_MM_LAMBDA { store(out + i, Convert<T, Stored>::read(in + i)); },
      [&](int64_t i) SAPA_MM_LAMBDA { out[i] = read_one<T>(in + i); });
}

template <typename T, typename Stored>
void narrow(const T* in, Stored* out, int64_t size) {
  for_each_vector<lanes<T>()>(
      size, [&](int64_t i) SAPA_MM_LAMBDA { Convert<T, Stored>::write(out + i, load(in + i)); },
      [&](int64_t i) SAPA_MM_LAMBDA { write_one(out + i, in[i]); });
}

// Whether vectors of T can be written past the cache at `p`.
template <typename T>
SAPA_MM_INLINE bool can_stream(const T* p) {
#if defined(__x86_64__) && SAPA_MM_VECTOR_BYTES >= 32
  return reinterpret_cast<uintptr_t>(p) % SAPA_MM_VECTOR_BYTES == 0;
#else
  return false;
#endif
}

template <typename T>
SAPA_MM_INLINE void store_past_cache(T* p, Vector<T> v) {
#if defined(__x86_64__) && SAPA_MM_VECTOR_BYTES == 64
  typedef float Bits __attribute__((vector_size(64)));
  __builtin_ia32_movntps512(reinterpret_cast<float*>(p), (Bits)v);
#elif defined(__x86_64__) && SAPA_MM_VECTOR_BYTES == 32
  typedef float Bits __attribute__((vector_size(32)));
  __builtin_ia32_movntps256(reinterpret_cast<float*>(p), (Bits)v);
#else
  store(p, v);
#endif
}

template <typename T, typename Stored>
void stream(const T* in, Stored* out, int64_t size) {
  int64_t i = 0;
  if constexpr (std::is_same<T, Stored>::value) {
    if (can_stream(out))
      for (; i + lanes<T>() <= size; i += lanes<T>()) store_past_cache(out + i, load(in + i));
  }
  narrow(in + i, out + i, size - i);
}

void fence() {
#if defined(__x86_64__)
  __builtin_ia32_sfence();
#endif
}

template <typename T, typename Stored>
void split(const Stored* in, T* even, T* odd, int64_t size) {
  constexpr int L = lanes<T>();
  for_each_vector<L>(
      size,
      [&](int64_t i) SAPA_MM_LAMBDA {
        const Vector<T> a = Convert<T, Stored>::read(in + 2 * i), b = Convert<T, Stored>::read(in + 2 * i + L);
        store(even + i, Shuffle<T>::every_second(a, b, 0));
        store(odd + i, Shuffle<T>::every_second(a, b, 1));
      },
      [&](int64_t i) SAPA_MM_LAMBDA {
        even[i] = read_one<T>(in + 2 * i);
        odd[i] = read_one<T>(in + 2 * i + 1);
      });
}

template <typename T, typename Stored>
SAPA_MM_INLINE void join_vectors(const T* first, const T* second, Stored* out) {
  const Vector<T> a = load(first), b = load(second);
  Convert<T, Stored>::write(out, Shuffle<T>::interleaved(a, b, 0));
  Convert<T, Stored>::write(out + lanes<T>(), Shuffle<T>::interleaved(a, b, 1));
}

// Whole lines of the cache are written at once, so that none is read before: where `out` begins inside one, the vectors
// begin at the next, and those at the two ends overlap their neighbours.
template <typename T, typename Stored>
void join(const T* even, const T* odd, Stored* out, int64_t size) {
  constexpr int L = lanes<T>();
  if (size < L) {
    for (int64_t i = 0; i < size; ++i) {
      write_one(out + 2 * i, even[i]);
      write_one(out + 2 * i + 1, odd[i]);
    }
    return;
  }
  constexpr int64_t bytes = L * sizeof(Stored);
  const int64_t inside = reinterpret_cast<uintptr_t>(out) % bytes / sizeof(Stored), skipped = inside ? L - inside : 0;
  if (skipped) join_vectors(even, odd, out);
  const T* first = (skipped % 2 ? odd : even) + skipped / 2;
  const T* second = (skipped % 2 ? even + 1 : odd) + skipped / 2;
  int64_t at = skipped;
  for (; at + 2 * L <= 2 * size; at += 2 * L, first += L, second += L) join_vectors(first, second, out + at);
  if (at < 2 * size) join_vectors(even + size - L, odd + size - L, out + 2 * (size - L));
}

// A square of vectors, transposed in place: each round interleaves the first half of the rows with the second.
template <typename T>
SAPA_MM_INLINE void transpose_square(Vector<T>* rows) {
  constexpr int L = lanes<T>();
#pragma GCC unroll 4
  for (int round = 1; round < L; round *= 2) {
    Vector<T> next[L];
#pragma GCC unroll 16
    for (int i = 0; i < L / 2; ++i) {
      next[2 * i] = Shuffle<T>::interleaved(rows[i], rows[i + L / 2], 0);
      next[2 * i + 1] = Shuffle<T>::interleaved(rows[i], rows[i + L / 2], 1);
    }
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) rows[i] = next[i];
  }
}

template <typename T, typename Stored>
void gather_columns(const Stored* const* columns, int64_t size, int64_t channels, T* out, int64_t stride) {
  constexpr int L = lanes<T>();
  int64_t x = 0;
  for (; x + L <= size; x += L) {
    int64_t c = 0;
    for (; c + L <= channels; c += L) {
      Vector<T> square[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) square[i] = Convert<T, Stored>::read(columns[x + i] + c);
      transpose_square<T>(square);
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) store(out + (c + i) * stride + x, square[i]);
    }
    for (; c < channels; ++c)
      for (int i = 0; i < L; ++i) out[c * stride + x + i] = read_one<T>(columns[x + i] + c);
  }
  for (; x < size; ++x)
    for (int64_t c = 0; c < channels; ++c) out[c * stride + x] = read_one<T>(columns[x] + c);
}

template <typename T, typename Stored>
void scatter_columns(const T* in, int64_t stride, int64_t size, int64_t channels, Stored* const* columns) {
  constexpr int L = lanes<T>();
  int64_t x = 0;
  for (; x + L <= size; x += L) {
    int64_t c = 0;
    for (; c + L <= channels; c += L) {
      Vector<T> square[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) square[i] = load(in + (c + i) * stride + x);
      transpose_square<T>(square);
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) Convert<T, Stored>::write(columns[x + i] + c, square[i]);
    }
    for (; c < channels; ++c)
      for (int i = 0; i < L; ++i) write_one(columns[x + i] + c, in[c * stride + x + i]);
  }
  for (; x < size; ++x)
    for (int64_t c = 0; c < channels; ++c) write_one(columns[x] + c, in[c * stride + x]);
}

// SLOTS x VECTORS sums stay in registers while the taps pass.
template <typename T, typename Stored, int SLOTS, int VECTORS>
SAPA_MM_INLINE void assemble_cell_block(const T* weights, int64_t slot_stride, int64_t tap_stride, const int* taps,
                                        const Stored* const* values, int count, int64_t channel, Stored* const* out) {
  constexpr int L = lanes<T>();
  Vector<T> sum[SLOTS][VECTORS] = {};
  for (int i = 0; i < count; ++i) {
    Vector<T> value[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) value[v] = Convert<T, Stored>::read(values[i] + channel + v * L);
    const T* weight = weights + taps[i] * tap_stride;
#pragma GCC unroll 8
    for (int s = 0; s < SLOTS; ++s)
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) sum[s][v] += all<T>(weight[s * slot_stride]) * value[v];
  }
#pragma GCC unroll 8
  for (int s = 0; s < SLOTS; ++s)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) Convert<T, Stored>::write(out[s] + channel + v * L, sum[s][v]);
}

template <typename T, typename Stored, int SLOTS>
void assemble_cell_slots(const T* weights, int64_t slot_stride, int64_t tap_stride, const int* taps,
                         const Stored* const* values, int count, int64_t channels, Stored* const* out) {
  constexpr int L = lanes<T>();
  int64_t c = 0;
  for (; c + 4 * L <= channels; c += 4 * L)
    assemble_cell_block<T, Stored, SLOTS, 4>(weights, slot_stride, tap_stride, taps, values, count, c, out);
  for (; c + L <= channels; c += L)
    assemble_cell_block<T, Stored, SLOTS, 1>(weights, slot_stride, tap_stride, taps, values, count, c, out);
  for (; c < channels; ++c)
    for (int s = 0; s < SLOTS; ++s) {
      T sum = 0;
      for (int i = 0; i < count; ++i)
        sum += weights[s * slot_stride + taps[i] * tap_stride] * read_one<T>(values[i] + c);
      write_one(out[s] + c, sum);
    }
}

template <typename T, typename Stored>
void assemble_cell(const T* weights, int64_t slot_stride, int64_t tap_stride, const int* taps,
                   const Stored* const* values, int count, int64_t channels, int slots, Stored* const* out) {
  switch (slots) {
    case 1:
      return assemble_cell_slots<T, Stored, 1>(weights, slot_stride, tap_stride, taps, values, count, channels, out);
    case 2:
      return assemble_cell_slots<T, Stored, 2>(weights, slot_stride, tap_stride, taps, values, count, channels, out);
    case 3:
      return assemble_cell_slots<T, Stored, 3>(weights, slot_stride, tap_stride, taps, values, count, channels, out);
    default:
      return assemble_cell_slots<T, Stored, 4>(weights, slot_stride, tap_stride, taps, values, count, channels, out);
  }
}

template <typename T>
const RowKernels<T>& kernels() {
  static const RowKernels<T> table = {correlate<T>, assemble<T>,      spread<T>,
                                      normalize<T>, weights_again<T>, normalize_backward<T>};
  return table;
}

template <typename T, typename Stored>
const PackKernels<T, Stored>& pack_kernels() {
  static const PackKernels<T, Stored> table = {
      widen<T, Stored>,         narrow<T, Stored>, stream<T, Stored>,         fence,
      split<T, Stored>,         join<T, Stored>,   gather_columns<T, Stored>, scatter_columns<T, Stored>,
      assemble_cell<T, Stored>,
  };
  return table;
}

#define SAPA_MM_INSTANTIATE                                                     \
  template const RowKernels<float>& kernels<float>();                           \
  template const RowKernels<double>& kernels<double>();                         \
  template const PackKernels<float, float>& pack_kernels<float, float>();       \
  template const PackKernels<double, double>& pack_kernels<double, double>();   \
  template const PackKernels<float, HalfBits>& pack_kernels<float, HalfBits>(); \
  template const PackKernels<float, BFloat16Bits>& pack_kernels<float, BFloat16Bits>();

SAPA_MM_INSTANTIATE

#undef SAPA_MM_INSTANTIATE

}  // namespace SAPA_MM_ISA
}  // namespace sapa_mm
