// SPDX-License-Identifier: Apache-2.0
// The loops of point_affiliation.h.

namespace sapa_mm {
namespace {

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
void recompute_weights(T* scores, int64_t stride, int taps, int64_t width, Normalization normalization,
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

}  // namespace

template <typename T>
template <Isa isa>
NormalizationLoops<T> NormalizationLoops<T>::make() {
  return {sapa_mm::normalize<T>, sapa_mm::recompute_weights<T>, sapa_mm::normalize_backward<T>};
}
template NormalizationLoops<float> NormalizationLoops<float>::make<kIsa>();
template NormalizationLoops<double> NormalizationLoops<double>::make<kIsa>();

}  // namespace sapa_mm
