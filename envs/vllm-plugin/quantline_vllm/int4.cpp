// Products of float32 rows with 4-bit weights, for x86 CPUs with AVX2 and FMA.
//
// A weight is value * scale + offset, value in 0..15, scale and offset by group and output. Weights
// are packed in blocks of 64 outputs: for each input 32 bytes, whose low halves are the values of
// outputs 0 to 31 and whose high halves those of outputs 32 to 63. Values are unpacked in registers;
// sums are float32 throughout, and a group's sum is scaled once.
//
// Compiled with -fopenmp and linked without an OpenMP library: the one that PyTorch has loaded
// serves it, so that the number of threads and their places are PyTorch's.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

namespace {

constexpr long kOutputs = 64;             // of a block
constexpr long kBytes = kOutputs / 2;     // of a block and input
constexpr long kVectors = kOutputs / 8;   // of floats, of a block and input
constexpr long kHalf = kVectors / 2;
constexpr long kTile = 128;               // inputs that are unpacked at once for several rows
constexpr long kRowsAtOnce = 126;         // rows that stay in the second cache while blocks pass

#define AVX2 __attribute__((target("avx2,fma"))) inline

AVX2 void unpack(const uint8_t* bytes, __m256* first, __m256* second) {
  const __m256i mask = _mm256_set1_epi8(15);
  const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
  const __m256i low = _mm256_and_si256(both, mask);
  const __m256i high = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
  const __m128i quarters[4] = {_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1),
                               _mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)};
  for (int i = 0; i < 4; i++) {
    const __m128i upper = _mm_srli_si128(quarters[i], 8);
    __m256* values = (i < 2 ? first : second) + 2 * (i % 2);
    values[0] = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(quarters[i]));
    values[1] = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(upper));
  }
}

// Adds values * x for kRows rows of x; half of the block's outputs, so that all sums stay in
// registers.
template <int kRows>
AVX2 void accumulate(const __m256* values, const float* const* x, long k,
                     __m256 (*sums)[kHalf]) {
  __m256 everywhere[kRows];
  for (int row = 0; row < kRows; row++) everywhere[row] = _mm256_set1_ps(x[row][k]);
  for (int i = 0; i < kHalf; i++)
    for (int row = 0; row < kRows; row++)
      sums[row][i] = _mm256_fmadd_ps(values[i], everywhere[row], sums[row][i]);
}

// y += sums * scales + x_sum * offsets, for half a block
AVX2 void finish(const __m256* sums, const float* scales, const float* offsets, float x_sum,
                 float* y) {
  const __m256 everywhere = _mm256_set1_ps(x_sum);
  for (int i = 0; i < kHalf; i++) {
    __m256 result = _mm256_loadu_ps(y + 8 * i);
    result = _mm256_fmadd_ps(sums[i], _mm256_loadu_ps(scales + 8 * i), result);
    result = _mm256_fmadd_ps(everywhere, _mm256_loadu_ps(offsets + 8 * i), result);
    _mm256_storeu_ps(y + 8 * i, result);
  }
}

struct Product {
  const float* x;         // [rows][inputs]
  const float* x_sums;    // [rows][groups], of x by groups of inputs
  const uint8_t* packed;  // [blocks][inputs][kBytes]
  const float* scales;    // [groups][outputs]
  const float* offsets;   // [groups][outputs]
  float* y;               // [rows][outputs]
  long rows, inputs, outputs, groups;
};

AVX2 void one_row(const Product& it, long block, long group) {
  const long size = it.inputs / it.groups, first = group * size, at = block * kOutputs;
  const uint8_t* bytes = it.packed + (block * it.inputs + first) * kBytes;
  __m256 sums[kVectors] = {}, values[kVectors];
  for (long k = 0; k < size; k++) {
    unpack(bytes + k * kBytes, values, values + kHalf);
    const __m256 everywhere = _mm256_set1_ps(it.x[first + k]);
    for (int i = 0; i < kVectors; i++) sums[i] = _mm256_fmadd_ps(values[i], everywhere, sums[i]);
  }
  for (long half = 0; half < 2; half++) {
    const long output = at + half * kOutputs / 2, scale = group * it.outputs + output;
    finish(sums + half * kHalf, it.scales + scale, it.offsets + scale, it.x_sums[group],
           it.y + output);
  }
}

// kRows rows from `row` on and one half of a block, whose values for the `count` inputs from `begun`
// on in the group are in `tile`.
template <int kRows>
AVX2 void some_rows(const Product& it, const __m256 (*tile)[kHalf], long output, long group,
                    long begun, long count, long row) {
  const long first = group * (it.inputs / it.groups) + begun, scale = group * it.outputs + output;
  const float* x[kRows];
  for (int r = 0; r < kRows; r++) x[r] = it.x + (row + r) * it.inputs + first;
  __m256 sums[kRows][kHalf] = {};
  for (long k = 0; k < count; k++) accumulate<kRows>(tile[k], x, k, sums);
  for (int r = 0; r < kRows; r++) {
    // The offsets of a group are added once, with its first tile.
    const float x_sum = begun == 0 ? it.x_sums[(row + r) * it.groups + group] : 0.0f;
    finish(sums[r], it.scales + scale, it.offsets + scale, x_sum,
           it.y + (row + r) * it.outputs + output);
  }
}

AVX2 void several_rows(const Product& it, long block, long group) {
  const long size = it.inputs / it.groups;
  // One half after the other: 16 KiB stay in the nearest cache for all rows.
  __m256 tile[2][kTile][kHalf];
  for (long begun = 0; begun < size; begun += kTile) {
    const long count = std::min(size - begun, kTile);
    const uint8_t* bytes = it.packed + (block * it.inputs + group * size + begun) * kBytes;
    for (long k = 0; k < count; k++) unpack(bytes + k * kBytes, tile[0][k], tile[1][k]);
    for (long half = 0; half < 2; half++) {
      const long output = block * kOutputs + half * kOutputs / 2;
      long row = 0;
      for (; row + 3 <= it.rows; row += 3)
        some_rows<3>(it, tile[half], output, group, begun, count, row);
      for (; row < it.rows; row++)
        some_rows<1>(it, tile[half], output, group, begun, count, row);
    }
  }
}

}  // namespace

extern "C" void quantline_int4_product(const float* x, const uint8_t* packed, const float* scales,
                                       const float* offsets, float* y, long rows, long inputs,
                                       long outputs, long groups) {
  std::vector<float> x_sums(rows * groups);
  const long size = inputs / groups;
  for (long group = 0; group < rows * groups; group++)
    x_sums[group] = std::accumulate(x + group * size, x + (group + 1) * size, 0.0f);
  std::fill(y, y + rows * outputs, 0.0f);
  for (long row = 0; row < rows; row += kRowsAtOnce) {
    const long count = std::min(rows - row, kRowsAtOnce);
    const Product it{x + row * inputs, x_sums.data() + row * groups, packed, scales, offsets,
                     y + row * outputs, count, inputs, outputs, groups};
#pragma omp parallel for
    for (long block = 0; block < outputs / kOutputs; block++)
      for (long group = 0; group < groups; group++)
        count == 1 ? one_row(it, block, group) : several_rows(it, block, group);
  }
}
