// SPDX-License-Identifier: Apache-2.0
// Exponential, logarithm and sigmoid of vectors.

namespace sapa_mm {
namespace {

// exp for vectors of float, to about 1 ulp on the normal range; results below 2^-126 are 0.
SAPA_MM_INLINE Vector<float> exponential(Vector<float> x) {
  typedef int32_t Integers __attribute__((vector_size(kVectorBytes)));
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

}  // namespace
}  // namespace sapa_mm
