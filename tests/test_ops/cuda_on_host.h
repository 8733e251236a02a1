// SPDX-License-Identifier: Apache-2.0
// Gives the words of CUDA that the kernels of ops/cuda use a meaning on the host: one thread per CUDA thread of a
// block, with a real barrier, and two blocks at once that nothing orders. It finds wrong indices and wrong shapes of
// shared memory, and under ThreadSanitizer missing barriers and writes of two blocks to one place. It says nothing of
// speed, nor of what holds inside a warp only.
#pragma once

#include <math.h>

#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__

namespace cuda_on_host {

struct Index {
  int64_t x = 0;
};

// Where blocks run, one after another.
struct Processor {
  explicit Processor(int threads) : barrier(threads) {}
  std::barrier<> barrier;
  std::vector<unsigned char> memory;
};

constexpr int kProcessors = 2;

inline thread_local Index block_index, thread_index;
inline thread_local Processor* processor = nullptr;

// Shared memory starts as NaN in every block, so that a read before a write shows in the results.
template <typename Kernel, typename... Args>
void launch(const Kernel& kernel, int64_t blocks, int threads, int64_t shared_bytes, const Args&... args) {
  std::vector<std::unique_ptr<Processor>> processors;
  std::vector<std::thread> pool;
  for (int64_t first = 0; first < kProcessors && first < blocks; ++first) {
    Processor* here = processors.emplace_back(std::make_unique<Processor>(threads)).get();
    for (int t = 0; t < threads; ++t)
      pool.emplace_back([&, here, first, t] {
        processor = here;
        for (int64_t b = first; b < blocks; b += kProcessors) {
          if (t == 0) here->memory.assign(shared_bytes, 0xff);
          here->barrier.arrive_and_wait();
          block_index.x = b;
          thread_index.x = t;
          kernel(args...);
          here->barrier.arrive_and_wait();
        }
      });
  }
  for (std::thread& thread : pool) thread.join();
}

// A number of 16 bits, kMantissa of them the mantissa's, that is read as float and rounded to nearest even.
template <int kMantissa, int kBias>
class Narrow {
 public:
  Narrow() = default;
  explicit Narrow(float x) {
    constexpr int kInfinity = 0x7fff >> kMantissa << kMantissa;
    int exponent, magnitude = kInfinity;
    std::frexp(x, &exponent);
    if (x == 0 || exponent < 2 - kBias) exponent = 2 - kBias;  // of the least normal number and those below
    if (std::isnan(x))
      magnitude += 1;
    else if (!std::isinf(x) && exponent <= kBias + 1)
      magnitude = ((exponent + kBias - 2) << kMantissa) +
                  static_cast<int>(std::nearbyint(std::ldexp(std::fabs(x), kMantissa + 1 - exponent)));
    if (magnitude > kInfinity && !std::isnan(x)) magnitude = kInfinity;
    bits_ = static_cast<uint16_t>(magnitude + (std::signbit(x) ? 0x8000 : 0));
  }
  operator float() const {
    const int exponent = (bits_ & 0x7fff) >> kMantissa, mantissa = bits_ & ((1 << kMantissa) - 1);
    const bool finite = exponent < 0x7fff >> kMantissa, normal = exponent > 0;
    const float magnitude = finite     ? std::ldexp(static_cast<float>(mantissa + (normal ? 1 << kMantissa : 0)),
                                                    (normal ? exponent : 1) - kBias - kMantissa)
                            : mantissa ? NAN
                                       : INFINITY;
    return bits_ & 0x8000 ? -magnitude : magnitude;
  }

 private:
  uint16_t bits_;
};

using Half = Narrow<10, 15>;
using BFloat16 = Narrow<7, 127>;

// What a run leaves out, to see that it is missed: "FILE:LINE" of a barrier, or "atomicAdd" for all that is atomic.
inline std::string left_out;

inline void synchronize(std::string_view place) {
  if (left_out.empty() || !place.ends_with(left_out)) processor->barrier.arrive_and_wait();
}

}  // namespace cuda_on_host

template <typename T>
void atomicAdd(T* sum, T x) {
  if (cuda_on_host::left_out == "atomicAdd")
    *sum += x;
  else
    std::atomic_ref<T>(*sum).fetch_add(x);
}

#define blockIdx cuda_on_host::block_index
#define threadIdx cuda_on_host::thread_index
#define SAPA_MM_TEXT(x) #x
#define SAPA_MM_PLACE(file, line) file ":" SAPA_MM_TEXT(line)
#define __syncthreads() cuda_on_host::synchronize(SAPA_MM_PLACE(__FILE__, __LINE__))
#define SAPA_MM_DYNAMIC_SHARED(type, name) \
  type* const name = reinterpret_cast<type*>(cuda_on_host::processor->memory.data())
#define SAPA_MM_LAUNCH(kernel, blocks, shared_bytes, stream, ...) \
  cuda_on_host::launch([](const auto&... args) { kernel(args...); }, blocks, kThreads, shared_bytes, __VA_ARGS__)
