// SPDX-License-Identifier: Apache-2.0
// Vectors by the compiler's vector types, and loops over numbers that it knows.

namespace sapa_mm {
namespace {

#define SAPA_MM_INLINE inline __attribute__((always_inline))
#define SAPA_MM_LAMBDA __attribute__((always_inline))
// A loop that has to be unrolled, so that the arrays it indexes stay in registers.
#define SAPA_MM_UNROLLED(i, count) _Pragma("GCC unroll 16") for (int i = 0; i < (count); ++i)

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
};
template <typename T>
using Vector = typename VectorOf<T>::type;

template <typename T>
constexpr int lanes() {
  return kVectorBytes / sizeof(T);
}

template <typename T>
SAPA_MM_INLINE Vector<T> load(const T* p) {
  return *reinterpret_cast<const Vector<T>*>(p);
}
template <typename T>
SAPA_MM_INLINE void store(T* p, Vector<T> v) {
  *reinterpret_cast<Vector<T>*>(p) = v;
}

template <typename T>
SAPA_MM_INLINE Vector<T> broadcast(T x) {
  const Vector<T> zero = {};
  return zero + x;
}

// Calls work with `value`, one of VALUES, as a constant of its type.
template <int... VALUES, typename Work>
SAPA_MM_INLINE void with_constant(int value, const Work& work) {
  (void)((value == VALUES && (work(std::integral_constant<int, VALUES>{}), true)) || ...);
}

// Calls work(first, size as a constant) for blocks of 5, 3, 2 and 1 that make up `count`.
template <typename Work>
SAPA_MM_INLINE void for_each_block(int count, const Work& work) {
  for (int first = 0, size; first < count; first += size) {
    size = count - first >= 5 ? 5 : count - first >= 3 ? 3 : count - first;
    with_constant<5, 3, 2, 1>(size, [&](auto constant) SAPA_MM_LAMBDA { work(first, constant); });
  }
}

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

}  // namespace
}  // namespace sapa_mm
