// SPDX-License-Identifier: Apache-2.0
// Between vectors of T, which sums are kept in, and what tensors hold. Half and bfloat16 come as their bits and are
// widened and rounded (to nearest even) with integer operations, which every instruction set has.

namespace sapa_mm {
namespace {

typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));
typedef uint16_t NarrowBits __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));

template <typename T, typename Stored>
struct Convert;

template <typename T>
struct Convert<T, T> {
  static SAPA_MM_INLINE Vector<T> read(const T* p) { return load(p); }
  static SAPA_MM_INLINE void write(T* p, Vector<T> v) { store(p, v); }
};

template <>
struct Convert<float, BFloat16Bits> {
  static SAPA_MM_INLINE Vector<float> read(const BFloat16Bits* p) {
    return (Vector<float>)(__builtin_convertvector(*reinterpret_cast<const NarrowBits*>(p), Bits) << 16);
  }
  static SAPA_MM_INLINE void write(BFloat16Bits* p, Vector<float> v) {
    const Bits bits = (Bits)v;
    const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Bits quiet = (bits >> 16) | 0x40;  // NaN stays NaN
    *reinterpret_cast<NarrowBits*>(p) = __builtin_convertvector(v == v ? rounded : quiet, NarrowBits);
  }
};

template <>
struct Convert<float, HalfBits> {
  static SAPA_MM_INLINE Vector<float> read(const HalfBits* p) {
    const Bits h = __builtin_convertvector(*reinterpret_cast<const NarrowBits*>(p), Bits);
    const Bits magnitude = (h & 0x7fff) << 13, exponent = magnitude & 0x0f800000u;
    const Bits zero = {};
    const Bits normal = magnitude + (112u << 23);  // exponent bias 127 instead of 15
    const Bits special = magnitude + (224u << 23);
    const Bits subnormal = (Bits)((Vector<float>)(magnitude + (113u << 23)) - (Vector<float>)(zero + (113u << 23)));
    Bits result = exponent == 0x0f800000u ? special : normal;
    result = exponent == 0u ? subnormal : result;
    return (Vector<float>)(result | ((h & 0x8000) << 16));
  }
  static SAPA_MM_INLINE void write(HalfBits* p, Vector<float> v) {
    const Bits bits = (Bits)v, sign = bits & 0x80000000u, magnitude = bits ^ sign, zero = {};
    const Bits normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    const Bits magic = zero + (126u << 23);  // the ulp of 0.5 is the least subnormal half
    const Bits subnormal = (Bits)((Vector<float>)magnitude + (Vector<float>)magic) - magic;
    Bits result = magnitude < (113u << 23) ? subnormal : normal;
    result = magnitude >= (143u << 23) ? zero + 0x7c00 : result;
    result = magnitude > (255u << 23) ? zero + 0x7e00 : result;
    *reinterpret_cast<NarrowBits*>(p) = __builtin_convertvector(result | (sign >> 16), NarrowBits);
  }
};

// One element by way of a whole vector.
template <typename T, typename Stored>
SAPA_MM_INLINE T read_one(const Stored* p) {
  Stored buffer[lanes<T>()] = {};
  buffer[0] = *p;
  return Convert<T, Stored>::read(buffer)[0];
}
template <typename T, typename Stored>
SAPA_MM_INLINE void write_one(Stored* p, T value) {
  Stored buffer[lanes<T>()];
  Vector<T> v = {};
  v[0] = value;
  Convert<T, Stored>::write(buffer, v);
  *p = buffer[0];
}

}  // namespace
}  // namespace sapa_mm
