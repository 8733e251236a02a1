// SPDX-License-Identifier: Apache-2.0
// The loops of samples.h.

namespace sapa_mm {
namespace {

template <typename T>
void locate(const T* dx, const T* dy, const T* cell_x, T cell_y, int64_t size, int64_t height, int64_t width, int64_t p,
            const Places<T>& places) {
  const T right = static_cast<T>(width), bottom = static_cast<T>(height);
  const int32_t line = static_cast<int32_t>(width) + 3;
  int32_t* first = places.first + p * kLine;
  T *share_x = places.share_x + p * kLine, *share_y = places.share_y + p * kLine;
  T *slope_x = places.slope_x + p * kLine, *slope_y = places.slope_y + p * kLine;
  for (int64_t i = 0; i < size; ++i) {
    const T x = cell_x[i] + dx[i], y = cell_y + dy[i];
    // Beyond the border, and at NaN, the rows are the far border's: nothing of the map is read, not even times 0. NaN
    // makes the share, and so the sample, NaN.
    const T inside_x = x >= T(-1) && x <= right ? x : right, inside_y = y >= T(-1) && y <= bottom ? y : bottom;
    int32_t left = static_cast<int32_t>(inside_x), top = static_cast<int32_t>(inside_y);
    left -= static_cast<T>(left) > inside_x;
    top -= static_cast<T>(top) > inside_y;
    first[i] = (top + 1) * line + left + 1;
    share_x[i] = x == x ? inside_x - static_cast<T>(left) : x;
    share_y[i] = y == y ? inside_y - static_cast<T>(top) : y;
    slope_x[i] = x < T(-1) || x > right ? T(0) : T(1);
    slope_y[i] = y < T(-1) || y > bottom ? T(0) : T(1);
  }
}

// The four rows of a sample and their shares.
template <typename T>
struct SampleCorners {
  SAPA_MM_INLINE SampleCorners(const Table<T>& table, const Places<T>& places, int64_t at)
      : right(places.share_x[at]), bottom(places.share_y[at]), left(T(1) - right), top(T(1) - bottom) {
    rows[0] = table.rows + places.first[at] * table.stride;
    rows[1] = rows[0] + table.stride;
    rows[2] = rows[0] + table.width * table.stride;
    rows[3] = rows[2] + table.stride;
    shares[0] = top * left;
    shares[1] = top * right;
    shares[2] = bottom * left;
    shares[3] = bottom * right;
  }

  T right, bottom, left, top;
  T* rows[4];
  T shares[4];
};

// Sums of the lanes of as many vectors as a vector has lanes.
template <typename T>
SAPA_MM_INLINE Vector<T> lane_sums(Vector<T>* vectors) {
  transpose_square<T>(vectors);
  Vector<T> sum = vectors[0];
  for (int i = 1; i < lanes<T>(); ++i) sum += vectors[i];
  return sum;
}

template <typename T, bool MOVES>
void correlate_samples(const T* vectors, int64_t stride, const Table<T>& table, const Places<T>& places, int64_t size,
                       T* scores, T* moves_x, T* moves_y) {
  constexpr int L = lanes<T>();
  for (int64_t p = 0; p < places.points; ++p) {
    for (int64_t i0 = 0; i0 < size; i0 += L) {
      Vector<T> score[L] = {}, move_x[L] = {}, move_y[L] = {};
      for (int64_t i = i0; i < i0 + L && i < size; ++i) {
        const int64_t at = p * kLine + i;
        const SampleCorners<T> corners(table, places, at);
        const T* vector = vectors + i * stride;
        Vector<T> product[4] = {};
        for (int64_t c = 0; c < table.channels; c += L) {
          const Vector<T> v = load(vector + c);
          SAPA_MM_UNROLLED (k, 4) product[k] += v * load(corners.rows[k] + c);
        }
        score[i - i0] = product[0] * broadcast<T>(corners.shares[0]) + product[1] * broadcast<T>(corners.shares[1]) +
                        product[2] * broadcast<T>(corners.shares[2]) + product[3] * broadcast<T>(corners.shares[3]);
        if (MOVES) {
          move_x[i - i0] = (product[1] - product[0]) * broadcast<T>(places.slope_x[at] * corners.top) +
                           (product[3] - product[2]) * broadcast<T>(places.slope_x[at] * corners.bottom);
          move_y[i - i0] = (product[2] - product[0]) * broadcast<T>(places.slope_y[at] * corners.left) +
                           (product[3] - product[1]) * broadcast<T>(places.slope_y[at] * corners.right);
        }
      }
      store(scores + p * kLine + i0, lane_sums<T>(score));
      if (MOVES) {
        store(moves_x + p * kLine + i0, lane_sums<T>(move_x));
        store(moves_y + p * kLine + i0, lane_sums<T>(move_y));
      }
    }
  }
}

template <typename T>
void correlate_samples(const T* vectors, int64_t stride, const Table<T>& table, const Places<T>& places, int64_t size,
                       T* scores, T* moves_x, T* moves_y) {
  if (moves_x)
    correlate_samples<T, true>(vectors, stride, table, places, size, scores, moves_x, moves_y);
  else
    correlate_samples<T, false>(vectors, stride, table, places, size, scores, moves_x, moves_y);
}

// VECTORS neighbouring vectors of channels stay in registers while the points pass.
template <typename T, int VECTORS>
SAPA_MM_INLINE void assemble_sample(const T* weights, const Table<T>& table, const Places<T>& places, int64_t i,
                                    int64_t channel, T* out) {
  constexpr int L = lanes<T>();
  Vector<T> sum[VECTORS] = {};
  for (int64_t p = 0; p < places.points; ++p) {
    const int64_t at = p * kLine + i;
    const SampleCorners<T> corners(table, places, at);
    SAPA_MM_UNROLLED (k, 4) {
      const Vector<T> share = broadcast<T>(weights[at] * corners.shares[k]);
      SAPA_MM_UNROLLED (v, VECTORS) sum[v] += share * load(corners.rows[k] + channel + v * L);
    }
  }
  SAPA_MM_UNROLLED (v, VECTORS) store(out + channel + v * L, sum[v]);
}

template <typename T>
void assemble_samples(const T* weights, const Table<T>& table, const Places<T>& places, int64_t size, T* out,
                      int64_t stride) {
  constexpr int L = lanes<T>();
  for (int64_t i = 0; i < size; ++i) {
    int64_t c = 0;
    for (; c + 4 * L <= table.channels; c += 4 * L)
      assemble_sample<T, 4>(weights, table, places, i, c, out + i * stride);
    for (; c < table.channels; c += L) assemble_sample<T, 1>(weights, table, places, i, c, out + i * stride);
  }
}

template <typename T>
void spread_samples(const T* weights, const T* vectors, int64_t stride, const Table<T>& table, const Places<T>& places,
                    int64_t size) {
  constexpr int L = lanes<T>();
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t p = 0; p < places.points; ++p) {
      const int64_t at = p * kLine + i;
      const SampleCorners<T> corners(table, places, at);
      SAPA_MM_UNROLLED (k, 4) {
        const Vector<T> share = broadcast<T>(weights[at] * corners.shares[k]);
        T* row = corners.rows[k];
        for (int64_t c = 0; c < table.channels; c += L)
          store(row + c, load(row + c) + share * load(vectors + i * stride + c));
      }
    }
  }
}

}  // namespace

template <typename T>
template <Isa isa>
SampleLoops<T> SampleLoops<T>::make() {
  return {sapa_mm::locate<T>, sapa_mm::correlate_samples<T>, sapa_mm::assemble_samples<T>, sapa_mm::spread_samples<T>};
}
template SampleLoops<float> SampleLoops<float>::make<kIsa>();
template SampleLoops<double> SampleLoops<double>::make<kIsa>();

}  // namespace sapa_mm
