// SPDX-License-Identifier: Apache-2.0
// Every kernel of ops/cuda once, as a program for ThreadSanitizer; test_cuda_on_host.py looks at the results. The first
// argument, if there is one, says what to leave out (cuda_on_host.h). Several blocks each, and more channels than a
// block stages at a time.
#define SAPA_MM_ONLY_FLOAT
#include "cuda_on_host.cpp"

namespace {

constexpr int64_t kImages = 1, kChannels = 24, kHeight = 16, kWidth = 40, kLowHeight = 8, kLowWidth = 20;
constexpr int64_t kHigh = kHeight * kWidth, kLow = kLowHeight * kLowWidth;

// Numbers of no order between -1 and 1.
std::vector<float> numbers(int64_t channels, int64_t positions) {
  std::vector<float> x(kImages * channels * positions);
  uint32_t state = 1;
  for (float& value : x) value = static_cast<float>((state = state * 1664525u + 1013904223u) >> 8) / 8388608.f - 1.f;
  return x;
}
std::vector<float> high(int64_t channels) {
  return numbers(channels, kHigh);
}
std::vector<float> low(int64_t channels) {
  return numbers(channels, kLow);
}

std::vector<int64_t> strides(std::initializer_list<std::pair<int64_t, int64_t>> channels_and_widths,
                             bool channels_last = false) {
  std::vector<int64_t> result;
  for (const auto& [channels, width] : channels_and_widths) {
    const int64_t positions = width == kWidth ? kHigh : kLow;
    const int64_t planes[] = {channels * positions, positions, width, 1};
    const int64_t vectors[] = {channels * positions, 1, channels * width, channels};
    result.insert(result.end(), channels_last ? vectors : planes, (channels_last ? vectors : planes) + 4);
  }
  return result;
}

void affiliation_and_back(int64_t kernel_size, bool channels_last) {
  const Sizes sizes{kImages, kChannels, kChannels, kHeight, kWidth, kLowHeight, kLowWidth, kernel_size, 1, 0};
  const auto s = strides({{kChannels, kWidth}, {kChannels, kLowWidth}, {kChannels, kLowWidth}, {kChannels, kWidth}},
                         channels_last);
  const auto query = high(kChannels), key = low(kChannels), value = low(kChannels), grad = high(kChannels);
  auto output = high(kChannels), normalizer = high(1), grad_query = query, grad_key = key, grad_value = value;
  affiliation_float(&sizes, s.data(), 0, query.data(), key.data(), value.data(), output.data(), normalizer.data());
  affiliation_backward_float(&sizes, s.data(), 0, 1, query.data(), key.data(), value.data(), grad.data(),
                             normalizer.data(), grad_query.data(), grad_key.data(), grad_value.data());
}

void assembly_and_back(int64_t kernel_size, int64_t groups, bool channels_last) {
  const int64_t taps = groups * kernel_size * kernel_size;
  const Sizes sizes{kImages, 0, kChannels, kHeight, kWidth, kLowHeight, kLowWidth, kernel_size, groups, 0};
  const auto s = strides({{kChannels, kLowWidth}, {taps, kWidth}, {kChannels, kWidth}}, channels_last);
  const auto feature = low(kChannels), kernels = high(taps), grad = high(kChannels);
  auto output = grad, grad_feature = feature, grad_kernels = kernels;
  assembly_float(&sizes, s.data(), feature.data(), kernels.data(), output.data());
  assembly_backward_float(&sizes, s.data(), feature.data(), kernels.data(), grad.data(), grad_feature.data(),
                          grad_kernels.data());
}

void sampling_and_back() {
  constexpr int64_t kGroups = 2, kPoints = 3, kAllPoints = kGroups * kPoints;
  const SamplingSizes sizes{kImages, kChannels, kHeight, kWidth, kLowHeight, kLowWidth, kGroups, kPoints};
  const auto s = strides({{kChannels, kWidth}, {kChannels, kLowWidth}, {kAllPoints * 2, kWidth}});
  const auto x = high(kChannels), map = low(kChannels), offset = high(kAllPoints * 2), weights = high(kAllPoints);
  auto scores = weights, grad_offset = offset, out = x;
  std::vector<float> sums(map.size());
  correlate_points_float(&sizes, s.data(), x.data(), map.data(), offset.data(), scores.data(), weights.data(),
                         grad_offset.data());
  assemble_points_float(&sizes, s.data(), weights.data(), map.data(), offset.data(), out.data());
  spread_points_float(&sizes, s.data(), weights.data(), x.data(), offset.data(), sums.data());
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1) cuda_on_host::left_out = arguments[1];
  for (const bool channels_last : {false, true}) {
    affiliation_and_back(3, channels_last);
    assembly_and_back(3, 2, channels_last);
  }
  affiliation_and_back(9, false);
  sampling_and_back();
}
