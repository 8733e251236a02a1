// SPDX-License-Identifier: Apache-2.0
// The loops of packing.h.

namespace sapa_mm {
namespace {

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

template <typename T, typename Stored>
void gather_columns(const Stored* const* columns, int64_t size, int64_t channels, T* out, int64_t stride) {
  constexpr int L = lanes<T>();
  int64_t x = 0;
  for (; x + L <= size; x += L) {
    int64_t c = 0;
    for (; c + L <= channels; c += L) {
      Vector<T> square[L];
      SAPA_MM_UNROLLED (i, L) square[i] = Convert<T, Stored>::read(columns[x + i] + c);
      transpose_square<T>(square);
      SAPA_MM_UNROLLED (i, L) store(out + (c + i) * stride + x, square[i]);
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
      SAPA_MM_UNROLLED (i, L) square[i] = load(in + (c + i) * stride + x);
      transpose_square<T>(square);
      SAPA_MM_UNROLLED (i, L) Convert<T, Stored>::write(columns[x + i] + c, square[i]);
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
    SAPA_MM_UNROLLED (v, VECTORS) value[v] = Convert<T, Stored>::read(values[i] + channel + v * L);
    const T* weight = weights + taps[i] * tap_stride;
    SAPA_MM_UNROLLED (s, SLOTS)
      SAPA_MM_UNROLLED (v, VECTORS) sum[s][v] += broadcast<T>(weight[s * slot_stride]) * value[v];
  }
  SAPA_MM_UNROLLED (s, SLOTS)
    SAPA_MM_UNROLLED (v, VECTORS) Convert<T, Stored>::write(out[s] + channel + v * L, sum[s][v]);
}

template <typename T, typename Stored>
void assemble_cell(const T* weights, int64_t slot_stride, int64_t tap_stride, const int* taps,
                   const Stored* const* values, int count, int64_t channels, int slots, Stored* const* out) {
  constexpr int L = lanes<T>();
  int64_t c = 0;
  with_constant<1, 2, 3, 4>(slots, [&](auto n) SAPA_MM_LAMBDA {
    constexpr int SLOTS = decltype(n)::value;
    for (; c + 4 * L <= channels; c += 4 * L)
      assemble_cell_block<T, Stored, SLOTS, 4>(weights, slot_stride, tap_stride, taps, values, count, c, out);
    for (; c + L <= channels; c += L)
      assemble_cell_block<T, Stored, SLOTS, 1>(weights, slot_stride, tap_stride, taps, values, count, c, out);
  });
  for (; c < channels; ++c)
    for (int s = 0; s < slots; ++s) {
      T sum = 0;
      for (int i = 0; i < count; ++i)
        sum += weights[s * slot_stride + taps[i] * tap_stride] * read_one<T>(values[i] + c);
      write_one(out[s] + c, sum);
    }
}

}  // namespace

template <typename T, typename Stored>
template <Isa isa>
PackLoops<T, Stored> PackLoops<T, Stored>::make() {
  return {sapa_mm::widen<T, Stored>,        sapa_mm::narrow<T, Stored>,         sapa_mm::split<T, Stored>,
          sapa_mm::join<T, Stored>,         sapa_mm::gather_columns<T, Stored>, sapa_mm::scatter_columns<T, Stored>,
          sapa_mm::assemble_cell<T, Stored>};
}
template PackLoops<float, float> PackLoops<float, float>::make<kIsa>();
template PackLoops<double, double> PackLoops<double, double>::make<kIsa>();
template PackLoops<float, HalfBits> PackLoops<float, HalfBits>::make<kIsa>();
template PackLoops<float, BFloat16Bits> PackLoops<float, BFloat16Bits>::make<kIsa>();

}  // namespace sapa_mm
