// Vectors of the instruction set a file is compiled for, through the compiler's vector extensions.
// Included only by the files that are compiled once per instruction set; everything here has
// internal linkage, so that two instruction sets never share an inline function.
#pragma once

#include <cstdint>
#include <cstring>

namespace trpo_fast {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kVectorRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kVectorRegisters = 16;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16;
constexpr int kVectorRegisters = 32;
#else
constexpr int kVectorBytes = 16;
constexpr int kVectorRegisters = 16;
#endif

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef std::int32_t integer __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef std::int64_t integer __attribute__((vector_size(kVectorBytes)));
};

template <class T>
using Vector = typename VectorOf<T>::type;
template <class T>
using IntegerVector = typename VectorOf<T>::integer;

template <class T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));

template <class T>
inline Vector<T> load(const T* from) {
  Vector<T> v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class T>
inline void store(T* to, Vector<T> v) {
  std::memcpy(to, &v, sizeof v);
}

template <class T>
inline Vector<T> broadcast(T value) {
  // x - 0 is x for every x, -0 included, so this is a broadcast and no arithmetic; 0 + x would not
  // be.
  return value - Vector<T>{};
}

// a[first], b[first], a[first + 1], b[first + 1], ... : half of each vector.
template <class T>
inline Vector<T> interleave(Vector<T> a, Vector<T> b, int first) {
#if defined(__clang__)
  Vector<T> pairs;
  for (int lane = 0; lane < kLanes<T>; ++lane) {
    pairs[lane] = lane % 2 == 0 ? a[first + lane / 2] : b[first + lane / 2];
  }
  return pairs;
#else
  IntegerVector<T> from{};
  for (int lane = 0; lane < kLanes<T>; ++lane) from[lane] = first + lane / 2 + lane % 2 * kLanes<T>;
  return __builtin_shuffle(a, b, from);
#endif
}

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "a reinterpretation keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace
}  // namespace trpo_fast
