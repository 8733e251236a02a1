// SPDX-License-Identifier: Apache-2.0
// The loops of channel_norm.h.

namespace sapa_mm {
namespace {

template <typename T>
void normalize_channels(T* planes, int64_t channels, T eps, T* mean, T* rstd) {
  constexpr int L = lanes<T>();
  const T share = T(1) / static_cast<T>(channels);
  for (int64_t i = 0; i < kBlock; i += L) {
    Vector<T> sum = {}, squares = {};
    for (int64_t c = 0; c < channels; ++c) sum += load(planes + c * kBlock + i);
    const Vector<T> center = sum * broadcast<T>(share);
    for (int64_t c = 0; c < channels; ++c) {
      const Vector<T> v = load(planes + c * kBlock + i) - center;
      squares += v * v;
    }
    const Vector<T> variance = squares * broadcast<T>(share) + broadcast<T>(eps);
    Vector<T> scale;
    for (int lane = 0; lane < L; ++lane)
      scale[lane] = T(1) / (sizeof(T) == 4 ? __builtin_sqrtf(variance[lane]) : __builtin_sqrt(variance[lane]));
    for (int64_t c = 0; c < channels; ++c)
      store(planes + c * kBlock + i, (load(planes + c * kBlock + i) - center) * scale);
    store(mean + i, center);
    store(rstd + i, scale);
  }
}

template <typename T>
void affine(const T* plane, T scale, T shift, T* out) {
  for (int64_t i = 0; i < kBlock; i += lanes<T>())
    store(out + i, load(plane + i) * broadcast<T>(scale) + broadcast<T>(shift));
}

template <typename T>
void renormalize_channels(T* planes, int64_t channels, const T* mean, const T* rstd) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t i = 0; i < kBlock; i += lanes<T>()) {
      T* x = planes + c * kBlock + i;
      store(x, (load(x) - load(mean + i)) * load(rstd + i));
    }
}

template <typename T>
void normalize_channels_backward(const T* planes, T* grads, int64_t channels, const T* rstd, const T* weight) {
  constexpr int L = lanes<T>();
  const T share = T(1) / static_cast<T>(channels);
  for (int64_t i = 0; i < kBlock; i += L) {
    Vector<T> grad_sum = {}, product_sum = {};
    for (int64_t c = 0; c < channels; ++c) {
      T* grad = grads + c * kBlock + i;
      if (weight) store(grad, load(grad) * broadcast<T>(weight[c]));
      grad_sum += load(grad);
      product_sum += load(grad) * load(planes + c * kBlock + i);
    }
    const Vector<T> grad_mean = grad_sum * broadcast<T>(share), product_mean = product_sum * broadcast<T>(share);
    for (int64_t c = 0; c < channels; ++c) {
      T* grad = grads + c * kBlock + i;
      store(grad, (load(grad) - grad_mean - load(planes + c * kBlock + i) * product_mean) * load(rstd + i));
    }
  }
}

// Position i always adds to sum i % kLanes, whatever the width of the vectors.
template <typename T>
void add_products(const T* grads, const T* planes, int64_t channels, T* sums) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t i = 0; i < kBlock; i += lanes<T>()) {
      const Vector<T> grad = load(grads + c * kBlock + i);
      T* sum = sums + c * kLanes + i % kLanes;
      store(sum, load(sum) + (planes ? grad * load(planes + c * kBlock + i) : grad));
    }
}

}  // namespace

template <typename T>
template <Isa isa>
ChannelLoops<T> ChannelLoops<T>::make() {
  return {sapa_mm::normalize_channels<T>, sapa_mm::affine<T>, sapa_mm::renormalize_channels<T>,
          sapa_mm::normalize_channels_backward<T>, sapa_mm::add_products<T>};
}
template ChannelLoops<float> ChannelLoops<float>::make<kIsa>();
template ChannelLoops<double> ChannelLoops<double>::make<kIsa>();

}  // namespace sapa_mm
