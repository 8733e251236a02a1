// SPDX-License-Identifier: Apache-2.0
// The kernels of ops/cuda, compiled for the host, as C functions that test_cuda_on_host.py calls. `strides` are those
// of the maps in the order of the arguments, four each; a null pointer is a gradient that is not wanted. T is the type
// of the maps, A that of sums.
#include "cuda_on_host.h"

#include "../../ops/cuda/feature_assembly.cuh"
#include "../../ops/cuda/point_affiliation.cuh"
#include "../../ops/cuda/samples.cuh"

namespace sapa_mm {
namespace {

struct Stream {};

struct Sizes {
  int64_t N, D, C, H, W, h, w, kernel_size, groups, border;
};

template <typename T>
View<T> view(T* data, int64_t n, int64_t c, int64_t height, int64_t width, const int64_t* strides) {
  return {data, n, c, height, width, strides[0], strides[1], strides[2], strides[3]};
}

template <typename T>
View<T> contiguous(T* data, int64_t n, int64_t c, int64_t height, int64_t width) {
  return {data, n, c, height, width, c * height * width, height * width, width, 1};
}

template <typename T, typename A>
void affiliation(const Sizes& s, const int64_t* strides, int64_t normalization, const T* query, const T* key,
                 const T* value, T* output, A* normalizer) {
  AffiliationForward<T, A, Stream>{view(query, s.N, s.D, s.H, s.W, strides),
                                   view(key, s.N, s.D, s.h, s.w, strides + 4),
                                   view(value, s.N, s.C, s.h, s.w, strides + 8),
                                   s.kernel_size,
                                   static_cast<Normalization>(normalization),
                                   static_cast<Border>(s.border),
                                   view(output, s.N, s.C, s.H, s.W, strides + 12),
                                   normalizer,
                                   {}}();
}

template <typename T, typename A>
void affiliation_backward(const Sizes& s, const int64_t* strides, int64_t normalization, int64_t images, const T* query,
                          const T* key, const T* value, const T* grad, const A* normalizer, T* grad_query, T* grad_key,
                          T* grad_value) {
  const int64_t taps = s.kernel_size * s.kernel_size;
  std::vector<A> weights(images * taps * s.H * s.W), grad_scores(weights.size());
  AffiliationBackward<T, A, Stream>{view(grad, s.N, s.C, s.H, s.W, strides + 12),
                                    view(query, s.N, s.D, s.H, s.W, strides),
                                    view(key, s.N, s.D, s.h, s.w, strides + 4),
                                    view(value, s.N, s.C, s.h, s.w, strides + 8),
                                    normalizer,
                                    s.kernel_size,
                                    static_cast<Normalization>(normalization),
                                    static_cast<Border>(s.border),
                                    view(grad_query, s.N, s.D, s.H, s.W, strides),
                                    view(grad_key, s.N, s.D, s.h, s.w, strides + 4),
                                    view(grad_value, s.N, s.C, s.h, s.w, strides + 8),
                                    contiguous(weights.data(), images, taps, s.H, s.W),
                                    contiguous(grad_key ? grad_scores.data() : nullptr, images, taps, s.H, s.W),
                                    images,
                                    {}}();
}

template <typename T, typename A>
void assembly(const Sizes& s, const int64_t* strides, const T* feature, const T* weights, T* output) {
  AssemblyForward<T, A, Stream>{view(feature, s.N, s.C, s.h, s.w, strides),
                                view(weights, s.N, s.groups * s.kernel_size * s.kernel_size, s.H, s.W, strides + 4),
                                s.kernel_size,
                                s.groups,
                                static_cast<Border>(s.border),
                                view(output, s.N, s.C, s.H, s.W, strides + 8),
                                {}}();
}

template <typename T, typename A>
void assembly_backward(const Sizes& s, const int64_t* strides, const T* feature, const T* weights, const T* grad,
                       T* grad_feature, T* grad_weights) {
  const int64_t channels = s.groups * s.kernel_size * s.kernel_size;
  AssemblyBackward<T, A, Stream>{view(grad, s.N, s.C, s.H, s.W, strides + 8),
                                 view(feature, s.N, s.C, s.h, s.w, strides),
                                 view(weights, s.N, channels, s.H, s.W, strides + 4),
                                 s.kernel_size,
                                 s.groups,
                                 static_cast<Border>(s.border),
                                 view(grad_feature, s.N, s.C, s.h, s.w, strides),
                                 view(grad_weights, s.N, channels, s.H, s.W, strides + 4),
                                 {}}();
}

struct SamplingSizes {
  int64_t N, C, H, W, h, w, groups, points;
};

// Strides of the map at the high resolution, of that at the low one and of the offsets.
template <typename T, typename A>
struct SamplingMaps {
  const SamplingSizes& s;
  const int64_t* strides;

  template <typename U>
  View<U> high(U* x) const {
    return view(x, s.N, s.C, s.H, s.W, strides);
  }
  View<const T> low(const T* x) const { return view(x, s.N, s.C, s.h, s.w, strides + 4); }
  template <typename U>
  View<U> points(U* x) const {
    return contiguous(x, s.N, s.groups * s.points, s.H, s.W);
  }
  template <typename U>
  View<U> offsets(U* x) const {
    return view(x, s.N, s.groups * s.points * 2, s.H, s.W, strides + 8);
  }
  Sampling<T, A, Stream> sampling(const T* offset) const { return {offsets(offset), s.groups, {}}; }
};

}  // namespace
}  // namespace sapa_mm

using sapa_mm::SamplingMaps;
using sapa_mm::SamplingSizes;
using sapa_mm::Sizes;

#define FOR_TYPE(NAME, T, A)                                                                                           \
  void affiliation_##NAME(const Sizes* s, const int64_t* strides, int64_t normalization, const T* query, const T* key, \
                          const T* value, T* output, A* normalizer) {                                                  \
    sapa_mm::affiliation<T, A>(*s, strides, normalization, query, key, value, output, normalizer);                     \
  }                                                                                                                    \
  void affiliation_backward_##NAME(const Sizes* s, const int64_t* strides, int64_t normalization, int64_t images,      \
                                   const T* query, const T* key, const T* value, const T* grad, const A* normalizer,   \
                                   T* grad_query, T* grad_key, T* grad_value) {                                        \
    sapa_mm::affiliation_backward<T, A>(*s, strides, normalization, images, query, key, value, grad, normalizer,       \
                                        grad_query, grad_key, grad_value);                                             \
  }                                                                                                                    \
  void assembly_##NAME(const Sizes* s, const int64_t* strides, const T* feature, const T* weights, T* output) {        \
    sapa_mm::assembly<T, A>(*s, strides, feature, weights, output);                                                    \
  }                                                                                                                    \
  void assembly_backward_##NAME(const Sizes* s, const int64_t* strides, const T* feature, const T* weights,            \
                                const T* grad, T* grad_feature, T* grad_weights) {                                     \
    sapa_mm::assembly_backward<T, A>(*s, strides, feature, weights, grad, grad_feature, grad_weights);                 \
  }                                                                                                                    \
  void correlate_points_##NAME(const SamplingSizes* s, const int64_t* strides, const T* x, const T* low,               \
                               const T* offset, A* scores, const A* weights, T* grad_offset) {                         \
    const SamplingMaps<T, A> maps{*s, strides};                                                                        \
    maps.sampling(offset).correlate(maps.high(x), maps.low(low), maps.points(scores), maps.points(weights),            \
                                    maps.offsets(grad_offset));                                                        \
  }                                                                                                                    \
  void assemble_points_##NAME(const SamplingSizes* s, const int64_t* strides, const A* weights, const T* low,          \
                              const T* offset, T* out) {                                                               \
    const SamplingMaps<T, A> maps{*s, strides};                                                                        \
    maps.sampling(offset).assemble(maps.points(weights), maps.low(low), maps.high(out));                               \
  }                                                                                                                    \
  void spread_points_##NAME(const SamplingSizes* s, const int64_t* strides, const A* weights, const T* x,              \
                            const T* offset, A* sums) {                                                                \
    const SamplingMaps<T, A> maps{*s, strides};                                                                        \
    maps.sampling(offset).spread(maps.points(weights), maps.high(x),                                                   \
                                 sapa_mm::contiguous(sums, s->N, s->C, s->h, s->w));                                   \
  }

extern "C" {
FOR_TYPE(float, float, float)
#if !defined(SAPA_MM_ONLY_FLOAT)
FOR_TYPE(double, double, double)
FOR_TYPE(half, cuda_on_host::Half, float)
FOR_TYPE(bfloat16, cuda_on_host::BFloat16, float)
#endif
}
