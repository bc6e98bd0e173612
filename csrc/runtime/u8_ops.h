// The ops of quantised networks: loops and static thread ranges over the kernels of a U8Table. What they compute is in
// fastmobilenet/reference_u8.py; what becomes a byte by a function of one byte (activations, changes of scale) is a
// table of 256 that lower_u8.py makes.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "runtime/ops.h"
#include "runtime/u8_table.h"

namespace fmn {

using Lookup = std::array<uint8_t, 256>;

// A convolution as the kernels read it; made by fastmobilenet/pack_u8.py.
struct PackedU8 {
  std::shared_ptr<WeightStore> store;  // keeps the memory alive
  std::string isa;                     // of the table that it is packed for
  const int8_t* weight = nullptr;
  const int32_t* bias = nullptr;  // [ceil(oc/16) * 16]
  const float* scale = nullptr;   // the same
  int oc = 0, kh = 0, kw = 0, ic = 0;
  bool depthwise = false;
  int passes = 1;  // of a depthwise convolution
  struct Panel {
    int block, nb, passes;
    ptrdiff_t offset;  // bytes
  };
  std::vector<Panel> panels;  // of a dense one
  int dw_k = 0;               // size of the depthwise kernel that the words are for, 0: any
};

// dst = clamp((((a - za) * ma + (b - zb) * mb + 2^(shift - 1)) >> shift) + zero); b may be one pixel.
struct AddFactors {
  int32_t ma, mb, shift;
};

// What is done to the bytes of a convolution while they are in the cache: each through a table, or the sum with another
// map of the same shape. `zero` is the zero point of the convolution's own bytes.
struct AfterConvU8 {
  std::shared_ptr<const Lookup> lookup;
  std::shared_ptr<const Tensor> add;
  AddFactors factors{};
  int32_t zero = 0;
  Requant requant{};  // of the sum
  bool nothing() const { return lookup == nullptr && add == nullptr; }
};

struct ConvU8Spec {
  std::shared_ptr<const PackedU8> weights;
  Window window;
  Requant requant;
  AfterConvU8 after;
};

// Pixels become bytes by one table a channel; floats by division, rounding and the zero point of dst.
struct InputU8 {
  std::vector<Lookup> pixels;     // one a channel, or none where pixels are the bytes
  std::vector<double> mean, std;  // of floats, one a channel, or none
  float scale;                    // of dst
  bool swap = false;              // the channels of pixels are in the opposite order
};

// All factories throw std::invalid_argument when shapes do not fit each other.
OpPtr make_input_u8(const U8Table& table, const Tensor& dst, const InputU8& input);
OpPtr make_conv_u8(const U8Table& table, std::string name, const Tensor& src, const Tensor& dst,
                   const ConvU8Spec& spec);
OpPtr make_depthwise_u8(const U8Table& table, std::string name, const Tensor& src, const Tensor& dst,
                        const ConvU8Spec& spec);

// That the factors keep all sums within 32 bits.
void check_add_factors(const std::string& name, const AddFactors& factors);
OpPtr make_add_u8(const U8Table& table, std::string name, const Tensor& a, const Tensor& b, const Tensor& dst,
                  const AddFactors& factors, const Requant& requant);
// dst = clamp(rint(fma(a - added, ra, fma(b - added, rb, rest))) + added); b may be one pixel.
struct AddFloats {
  float ra, rb, rest;
  int32_t added;  // to the codes of the file
};
OpPtr make_add_floats_u8(const U8Table& table, std::string name, const Tensor& a, const Tensor& b, const Tensor& dst,
                         const AddFloats& floats, int lo, int hi);
// dst = clamp(rint((a - za) * (b - zb) * factor) + zero); b may be one pixel.
OpPtr make_mul_u8(const U8Table& table, std::string name, const Tensor& a, const Tensor& b, const Tensor& dst,
                  float factor, const Requant& requant);
OpPtr make_lookup_u8(const U8Table& table, std::string name, const Tensor& src, const Tensor& dst,
                     const Lookup& lookup);
// How a mean is rounded: see pool_mean, _average and _mean in reference_u8.py. `added` is what was added to the codes
// of the file.
enum class MeanRule { requantize, average, mean };
struct PoolU8 {
  PoolKind kind;
  MeanRule rule;
  int added;
  double src_scale, dst_scale;
};
OpPtr make_pool_u8(const U8Table& table, std::string name, const Tensor& src, const Tensor& dst, const PoolU8& pool,
                   std::vector<PoolSpan> rows, std::vector<PoolSpan> columns);
// Channel i of dst is channel index[i] of the concatenated sources, each through its table.
OpPtr make_gather_u8(std::string name, const std::vector<Tensor>& sources, const std::vector<Lookup>& lookups,
                     const Tensor& dst, const std::vector<int>& index);
// table[k] = exp(-scale of src * k).
OpPtr make_softmax_u8(std::string name, const Tensor& src, const Tensor& dst, const std::array<float, 256>& table,
                      float dst_scale);
// Floats <-> bytes.
OpPtr make_quantize(std::string name, const Tensor& src, const Tensor& dst, float scale);
OpPtr make_dequantize(std::string name, const Tensor& src, const Tensor& dst, float scale);

}  // namespace fmn
