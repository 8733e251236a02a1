// SPDX-License-Identifier: Apache-2.0
// Gives the words of CUDA that the kernels of ops/cuda use a meaning on the host: one thread per CUDA thread of a
// block, with a real barrier; blocks one after another. It finds wrong indices, wrong shapes of shared memory and
// missing barriers of the crude kind; it says nothing of speed or of races inside a warp.
#pragma once

#include <math.h>

#include <atomic>
#include <barrier>
#include <cstdint>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__

namespace cuda_on_host {

struct Index {
  int64_t x = 0;
};

inline thread_local Index block_index, thread_index;
inline std::barrier<>* block_barrier = nullptr;
inline unsigned char* shared_memory = nullptr;

// Shared memory starts as NaN in every block, so that a read before a write shows in the results.
template <typename Kernel, typename... Args>
void launch(const Kernel& kernel, int64_t blocks, int threads, int64_t shared_bytes, const Args&... args) {
  std::vector<unsigned char> memory;
  std::barrier<> barrier(threads);
  block_barrier = &barrier;
  std::vector<std::thread> pool;
  for (int t = 0; t < threads; ++t)
    pool.emplace_back([&, t] {
      for (int64_t b = 0; b < blocks; ++b) {
        if (t == 0) {
          memory.assign(shared_bytes, 0xff);
          shared_memory = memory.data();
        }
        barrier.arrive_and_wait();
        block_index.x = b;
        thread_index.x = t;
        kernel(args...);
        barrier.arrive_and_wait();
      }
    });
  for (std::thread& thread : pool) thread.join();
}

}  // namespace cuda_on_host

template <typename T>
void atomicAdd(T* sum, T x) {
  std::atomic_ref<T>(*sum).fetch_add(x);
}

#define blockIdx cuda_on_host::block_index
#define threadIdx cuda_on_host::thread_index
#define __syncthreads() cuda_on_host::block_barrier->arrive_and_wait()
#define SAPA_MM_DYNAMIC_SHARED(type, name) type* const name = reinterpret_cast<type*>(cuda_on_host::shared_memory)
#define SAPA_MM_LAUNCH(kernel, blocks, shared_bytes, stream, ...) \
  cuda_on_host::launch([](const auto&... args) { kernel(args...); }, blocks, kThreads, shared_bytes, __VA_ARGS__)
