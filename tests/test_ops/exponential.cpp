// SPDX-License-Identifier: Apache-2.0
// The float exponential of the CPU operators against long double, as a program: test_exponential.py reads its output.
// SAPA_MM_VECTOR_BYTES is that of the instruction set it is compiled for.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../../ops/cpu/norms.h"
#include "../../ops/cpu/points.h"
#include "../../ops/cpu/rows.h"

#define SAPA_MM_ISA on_trial
#include "../../ops/cpu/rows.inl"

// Every `step`-th float of either sign. Prints the largest error in ulp from -87.3 to 88.7, the argument of it, and how
// many results outside are not 0, infinite or, for NaN, NaN.
int main(int, char** arguments) {
  using sapa_mm::on_trial::Vector;
  const uint64_t step = std::strtoull(arguments[1], nullptr, 10);
  double worst = 0;
  float worst_at = 0;
  uint64_t wrong = 0;
  for (uint64_t first = 0; first < (uint64_t{1} << 32); first += step) {
    const uint32_t bits = static_cast<uint32_t>(first);
    float x;
    std::memcpy(&x, &bits, sizeof(x));
    const Vector<float> all = Vector<float>{} + x;
    const Vector<float> results = sapa_mm::on_trial::exponential(all);
    const float result = results[0];
    if (std::isnan(x)) {
      wrong += !std::isnan(result);
    } else if (x < -87.3f || x > 88.7f) {
      wrong += result != (x < 0 ? 0.f : INFINITY);
    } else {
      const long double exact = std::exp(static_cast<long double>(x));
      const long double ulp = std::ldexp(1.0L, std::ilogb(exact) - 23);
      const double error = static_cast<double>(std::fabs(result - exact) / ulp);
      if (!(error <= worst)) worst = error, worst_at = x;
    }
  }
  std::printf("%.17g %.9g %llu\n", worst, static_cast<double>(worst_at), static_cast<unsigned long long>(wrong));
}
