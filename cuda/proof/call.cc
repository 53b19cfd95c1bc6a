#include "proof/call.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace dhp::proof {
namespace {

constexpr size_t kAlignment = 64;

size_t element_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Rounds toward zero: here it matters which sorts of number come out, not which neighbour of two.
uint16_t half_bits(float value) {
  const uint32_t bits = float_bits(value), sign = bits >> 16 & 0x8000;
  const int exponent = static_cast<int>(bits >> 23 & 0xFF) - 127;
  const uint32_t fraction = bits & 0x7FFFFF;
  if (exponent == 128) return static_cast<uint16_t>(sign | 0x7C00 | (fraction != 0 ? 0x200 : 0));
  if (exponent > 15) return static_cast<uint16_t>(sign | 0x7BFF);
  if (exponent >= -14) return static_cast<uint16_t>(sign | (exponent + 15) << 10 | fraction >> 13);
  if (exponent >= -24) return static_cast<uint16_t>(sign | (fraction | 0x800000) >> (-exponent - 1));
  return static_cast<uint16_t>(sign | (bits & 0x3FF));  // a subnormal, so that subnormals stay what they are
}

void store(const Array& array, DType dtype, int64_t index, float value) {
  const uint32_t bits = float_bits(value);
  if (dtype == DType::kFloat32) {
    static_cast<uint32_t*>(array.data())[index] = bits;
    return;
  }
  const bool is_nan = value != value;
  static_cast<uint16_t*>(array.data())[index] = dtype == DType::kFloat16 ? half_bits(value)
                                                : is_nan                 ? 0x7FC0
                                                                         : static_cast<uint16_t>(bits >> 16);
}

// `inner` values of one row share its position.
void fill_values(const Array& array, DType dtype, int64_t rows, int64_t inner, float (*value)(Random&, float),
                 Random& random) {
  const auto count = static_cast<int64_t>(array.size() / element_size(dtype));
  for (int64_t i = 0; i < count; ++i) {
    const float position = static_cast<float>(i / inner % rows) / static_cast<float>(rows);
    store(array, dtype, i, value(random, position));
  }
}

void fill_mask(const Array& array, Secrets::Mask mask, Random& random) {
  for (size_t i = 0; i < array.size(); ++i)
    static_cast<uint8_t*>(array.data())[i] =
        mask == Secrets::Mask::kRandom ? random.uniform() < 0.7f : mask == Secrets::Mask::kEverything;
}

void fill_lengths(const Array& array, int32_t length, int64_t longest, Random& random) {
  for (size_t i = 0; i < array.size() / sizeof(int32_t); ++i)
    static_cast<int32_t*>(array.data())[i] =
        length != Secrets::kRandomLength
            ? length
            : static_cast<int32_t>(random.uniform() * static_cast<float>(longest + 4)) - 2;
}

int64_t head_rows_count(const Shape& s, int64_t rows, int64_t heads, bool mapped) {
  return (mapped ? s.V : 1) * s.B * rows * heads * s.D;
}

template <typename Rows>
Rows head_rows(const Array& array, const Shape& s, int64_t rows, int64_t heads, bool mapped) {
  const int64_t row = heads * s.D, batch = rows * row;
  return {array.data(), mapped ? s.B * batch : 0, batch, row, s.D};
}

// Sizes of a bias or mask along V, B, N, T, S.
struct PlaneSizes {
  int64_t v, b, n, t, s;
  int64_t count() const { return v * b * n * t * s; }
};

PlaneSizes plane_sizes(const Shape& s, unsigned axes) {
  return {axes & kV ? s.V : 1, axes & kB ? s.B : 1, axes & kN ? s.N : 1, axes & kT ? s.T : 1,
          axes & kS ? s.S : 1};
}

template <typename Plane, typename Pointer>
Plane plane(Pointer data, const PlaneSizes& z) {
  auto stride = [](int64_t size, int64_t inner) { return size == 1 ? 0 : inner; };
  return {data,
          stride(z.v, z.b * z.n * z.t * z.s),
          stride(z.b, z.n * z.t * z.s),
          stride(z.n, z.t * z.s),
          stride(z.t, z.s),
          stride(z.s, 1)};
}

Array elements(int64_t count, DType dtype) { return Array(static_cast<size_t>(count) * element_size(dtype)); }
Array floats(int64_t count) { return elements(count, DType::kFloat32); }

float* as_floats(const Array& array) { return static_cast<float*>(array.data()); }

int64_t statistics_count(const Shape& s) { return s.V * s.B * s.T * s.N; }

}  // namespace

Array::Array(size_t size) : size_(size) {
  if (size == 0) return;
  void* data = nullptr;
  if (posix_memalign(&data, kAlignment, size) != 0) throw std::bad_alloc();
  std::memset(data, 0, size);
  data_.reset(data);
}

void Array::Free::operator()(void* data) const { std::free(data); }

const char* kernel_name(Kernel kernel) {
  switch (kernel) {
    case Kernel::kForward: return "fwd";
    case Kernel::kBackward: return "bwd";
    case Kernel::kBiasBackward: return "bwd_bias";
  }
  return "unknown";
}

bool has_kernel(const Case& c, Kernel kernel) { return kernel != Kernel::kBiasBackward || c.has_bias; }

Call::Call(const Case& c, DType dtype)
    : case_(c),
      dtype_(dtype),
      query_(elements(head_rows_count(c.shape, c.shape.T, c.shape.N, true), dtype)),
      key_(elements(head_rows_count(c.shape, c.shape.S, c.shape.K, !c.keys_unmapped), dtype)),
      value_(key_.size()),
      bias_(c.has_bias ? elements(plane_sizes(c.shape, c.bias_axes).count(), c.bias_dtype) : Array()),
      mask_(c.has_mask ? static_cast<size_t>(plane_sizes(c.shape, c.mask_axes).count()) : 0),
      query_lengths_(c.query_lengths ? static_cast<size_t>(c.shape.V * c.shape.B) * sizeof(int32_t) : 0),
      key_value_lengths_(c.key_value_lengths ? static_cast<size_t>(c.shape.V * c.shape.B) * sizeof(int32_t)
                                             : 0),
      out_(query_.size()),
      row_max_(floats(statistics_count(c.shape))),
      log_sum_(floats(statistics_count(c.shape))),
      d_out_(query_.size()),
      d_lse_(floats(statistics_count(c.shape))),
      d_query_(query_.size()),
      d_key_(elements(head_rows_count(c.shape, c.shape.S, c.shape.K, true), dtype)),
      d_value_(d_key_.size()),
      d_bias_(c.has_bias ? elements(plane_sizes(c.shape, c.bias_axes | kV).count(), c.bias_dtype) : Array()),
      delta_(floats(statistics_count(c.shape))) {}

void Call::fill(const Secrets& secrets, uint64_t seed) {
  const Shape& s = case_.shape;
  Random random(seed);
  fill_values(query_, dtype_, s.T, s.N * s.D, secrets.query, random);
  fill_values(d_out_, dtype_, s.T, s.N * s.D, secrets.query, random);
  fill_values(key_, dtype_, s.S, s.K * s.D, secrets.key, random);
  fill_values(value_, dtype_, s.S, s.K * s.D, secrets.key, random);
  fill_values(d_lse_, DType::kFloat32, s.T, s.N, secrets.query, random);
  fill_values(bias_, case_.bias_dtype, s.S, 1, secrets.query, random);
  fill_mask(mask_, secrets.mask, random);
  fill_lengths(query_lengths_, secrets.query_length, s.T, random);
  fill_lengths(key_value_lengths_, secrets.key_value_length, s.S, random);
}

Problem Call::problem() const {
  const Case& c = case_;
  const Shape& s = c.shape;
  Problem p;
  p.shape = s;
  p.dtype = dtype_;
  p.scale = 0.35f;
  p.band = {c.left == -1 ? s.T : c.left, c.right == -1 ? s.S : c.right};
  p.query = head_rows<InRows>(query_, s, s.T, s.N, true);
  p.key = head_rows<InRows>(key_, s, s.S, s.K, !c.keys_unmapped);
  p.value = head_rows<InRows>(value_, s, s.S, s.K, !c.keys_unmapped);
  p.bias_dtype = c.bias_dtype;
  if (c.has_bias)
    p.bias =
        plane<ScorePlane<const void*>>(static_cast<const void*>(bias_.data()), plane_sizes(s, c.bias_axes));
  if (c.has_mask)
    p.mask = plane<ScorePlane<const uint8_t*>>(static_cast<const uint8_t*>(mask_.data()),
                                               plane_sizes(s, c.mask_axes));
  if (c.query_lengths)
    p.query_lengths = {static_cast<const int32_t*>(query_lengths_.data()), s.V == 1 ? 0 : s.B, 1};
  if (c.key_value_lengths)
    p.key_value_lengths = {static_cast<const int32_t*>(key_value_lengths_.data()), s.V == 1 ? 0 : s.B, 1};
  return p;
}

ForwardParams Call::forward_params() const {
  const Shape& s = case_.shape;
  ForwardParams p;
  p.problem = problem();
  p.out = head_rows<OutRows>(out_, s, s.T, s.N, true);
  p.row_max = as_floats(row_max_);
  p.log_sum = as_floats(log_sum_);
  return p;
}

template <typename Params>
Params Call::backward_params() const {
  const Shape& s = case_.shape;
  Params p;
  p.problem = problem();
  p.out = head_rows<InRows>(out_, s, s.T, s.N, true);
  p.d_out = head_rows<InRows>(d_out_, s, s.T, s.N, true);
  p.row_max = as_floats(row_max_);
  p.log_sum = as_floats(log_sum_);
  p.d_lse = as_floats(d_lse_);
  p.delta = as_floats(delta_);
  return p;
}

BiasBackwardParams Call::bias_backward_params() const {
  BiasBackwardParams p = backward_params<BiasBackwardParams>();
  const PlaneSizes sizes = plane_sizes(case_.shape, case_.bias_axes | kV);
  p.bias_shape = case_.shape;
  p.bias_shape.V = sizes.v, p.bias_shape.B = sizes.b, p.bias_shape.N = sizes.n;
  p.bias_shape.T = sizes.t, p.bias_shape.S = sizes.s;
  p.d_bias = plane<ScorePlane<void*>>(d_bias_.data(), sizes);
  return p;
}

void Call::run_forward() { run(Kernel::kForward, {}); }

bool Call::run(Kernel kernel, const ThreadLender& threads) {
  const Shape& s = case_.shape;
  switch (kernel) {
    case Kernel::kForward: return host_attention_fwd(forward_params(), threads);
    case Kernel::kBackward: {
      BackwardParams p = backward_params<BackwardParams>();
      p.d_query = head_rows<OutRows>(d_query_, s, s.T, s.N, true);
      p.d_key = head_rows<OutRows>(d_key_, s, s.S, s.K, true);
      p.d_value = head_rows<OutRows>(d_value_, s, s.S, s.K, true);
      return host_attention_bwd(p, threads);
    }
    case Kernel::kBiasBackward: return host_attention_bwd_bias(bias_backward_params(), threads);
  }
  return false;
}

std::vector<const Array*> Call::arrays() const {
  return {&query_,   &key_,     &value_,   &bias_,  &mask_,  &query_lengths_, &key_value_lengths_,
          &out_,     &row_max_, &log_sum_, &d_out_, &d_lse_, &d_query_,       &d_key_,
          &d_value_, &d_bias_,  &delta_};
}

std::vector<const Array*> Call::outputs(Kernel kernel) const {
  switch (kernel) {
    case Kernel::kForward: return {&out_, &row_max_, &log_sum_};
    case Kernel::kBackward: return {&d_query_, &d_key_, &d_value_};
    case Kernel::kBiasBackward: return {&d_bias_};
  }
  return {};
}

std::vector<const Array*> Call::products(Kernel kernel) const {
  if (kernel == Kernel::kForward) return {&out_};
  return outputs(kernel);
}

}  // namespace dhp::proof
