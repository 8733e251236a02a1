// SPDX-License-Identifier: Apache-2.0
// Vectors shuffled and transposed.

namespace sapa_mm {
namespace {

// The even (or odd) elements of two vectors, and two vectors interleaved (first or second half).
template <typename T>
struct Shuffle {
  typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> Index __attribute__((vector_size(kVectorBytes)));
  typedef T Aligned __attribute__((vector_size(kVectorBytes)));

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

// A square of vectors, transposed in place: each round interleaves the first half of the rows with the second.
template <typename T>
SAPA_MM_INLINE void transpose_square(Vector<T>* rows) {
  constexpr int L = lanes<T>();
#pragma GCC unroll 4
  for (int round = 1; round < L; round *= 2) {
    Vector<T> next[L];
    SAPA_MM_UNROLLED (i, L / 2) {
      next[2 * i] = Shuffle<T>::interleaved(rows[i], rows[i + L / 2], 0);
      next[2 * i + 1] = Shuffle<T>::interleaved(rows[i], rows[i + L / 2], 1);
    }
    SAPA_MM_UNROLLED (i, L) rows[i] = next[i];
  }
}

}  // namespace
}  // namespace sapa_mm
