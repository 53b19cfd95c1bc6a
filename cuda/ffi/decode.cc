#include "ffi/decode.h"

#include <initializer_list>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "launch/workspace.h"

namespace dhp {
namespace {

namespace ffi = xla::ffi;
using Sizes = std::vector<int64_t>;

constexpr int64_t kMaxChannels = 256;
constexpr int64_t kMaxLength = std::numeric_limits<int32_t>::max() - 1024;  // positions are compared as int32

const char* dtype_name(ffi::DataType dtype) {
  switch (dtype) {
    case ffi::DataType::F32: return "float32";
    case ffi::DataType::BF16: return "bfloat16";
    case ffi::DataType::F16: return "float16";
    case ffi::DataType::PRED: return "bool";
    case ffi::DataType::S32: return "int32";
    default: return "another dtype";
  }
}

template <typename Range>
std::string join(const Range& sizes) {
  std::ostringstream text;
  const char* separator = "";
  for (int64_t size : sizes) {
    text << separator << size;
    separator = ",";
  }
  return text.str();
}

[[noreturn]] void reject(const std::string& name, const ffi::AnyBuffer& buffer, const std::string& rule) {
  throw std::invalid_argument("dhp_jax: " + name + " is " + describe(buffer) + "; " + rule);
}

// Takes the operands or results of a call one after the other.
template <typename Remaining>
class Reader {
 public:
  explicit Reader(Remaining buffers) : buffers_(buffers) {}

  ffi::AnyBuffer next(const char* name) {
    if (index_ >= buffers_.size())
      throw std::invalid_argument(std::string("dhp_jax: the call has no buffer for ") + name);
    return get(index_++);
  }

  bool has_more() const { return index_ < buffers_.size(); }

  void finish() const {
    if (index_ != buffers_.size())
      throw std::invalid_argument("dhp_jax: the call has " + std::to_string(buffers_.size()) +
                                  " buffers where " + std::to_string(index_) + " are expected");
  }

 private:
  ffi::AnyBuffer get(size_t index) {
    if constexpr (std::is_same_v<Remaining, ffi::RemainingArgs>) {
      return buffers_.template get<ffi::AnyBuffer>(index).value();
    } else {
      return *buffers_.template get<ffi::AnyBuffer>(index).value();
    }
  }

  Remaining buffers_;
  size_t index_ = 0;
};

DType float_dtype(const char* name, const ffi::AnyBuffer& buffer) {
  switch (buffer.element_type()) {
    case ffi::DataType::F32: return DType::kFloat32;
    case ffi::DataType::BF16: return DType::kBFloat16;
    case ffi::DataType::F16: return DType::kFloat16;
    default: reject(name, buffer, "it must be float32, bfloat16 or float16");
  }
}

void expect_dtype(const char* name, const ffi::AnyBuffer& buffer, ffi::DataType dtype) {
  if (buffer.element_type() != dtype) reject(name, buffer, std::string("it must be ") + dtype_name(dtype));
}

void expect_rank(const char* name, const ffi::AnyBuffer& buffer, size_t rank) {
  if (buffer.dimensions().size() != rank) reject(name, buffer, "it must have rank " + std::to_string(rank));
}

// Sizes must equal `full`; where `shared` is set, a size of 1 is also legal on that axis.
void expect_sizes(const char* name, const ffi::AnyBuffer& buffer, const Sizes& full,
                  std::initializer_list<bool> shared) {
  expect_rank(name, buffer, full.size());
  size_t axis = 0;
  for (bool may_be_one : shared) {
    const int64_t size = buffer.dimensions()[axis];
    if (size != full[axis] && !(may_be_one && size == 1))
      reject(name, buffer,
             "axis " + std::to_string(axis) + " must be " + std::to_string(full[axis]) +
                 (may_be_one ? " or 1" : "") + " to fit [" + join(full) + "]");
    ++axis;
  }
}

// Strides of a dense row-major buffer; 0 on axes of size 1, which repeat.
std::vector<int64_t> strides(const ffi::AnyBuffer& buffer) {
  std::vector<int64_t> result(buffer.dimensions().size());
  int64_t stride = 1;
  for (size_t axis = result.size(); axis-- > 0;) {
    const int64_t size = buffer.dimensions()[axis];
    result[axis] = size == 1 ? 0 : stride;
    stride *= size;
  }
  return result;
}

template <typename Rows>
Rows rows_of(const ffi::AnyBuffer& buffer) {
  const auto stride = strides(buffer);
  return Rows{buffer.untyped_data(), stride[0], stride[1], stride[2], stride[3]};
}

template <typename Pointer>
ScorePlane<Pointer> plane_of(const ffi::AnyBuffer& buffer) {
  const auto stride = strides(buffer);
  return {static_cast<Pointer>(buffer.untyped_data()), stride[0], stride[1], stride[2], stride[3], stride[4]};
}

Shape shape_of(const ffi::AnyBuffer& query, const ffi::AnyBuffer& key, int64_t mapped) {
  expect_rank("query", query, 5);
  expect_rank("key", key, 5);
  const auto q = query.dimensions(), k = key.dimensions();
  const Shape shape{mapped, q[1], q[2], k[2], q[3], k[3], q[4]};
  if (shape.K < 1 || shape.N % shape.K != 0)
    reject("query", query, "its heads (axis 3) must be a multiple of the heads of key " + describe(key));
  if (shape.D < 8 || shape.D > kMaxChannels || shape.D % 8 != 0)
    reject("query", query, "its channels (axis 4) must be a multiple of 8 from 8 to 256");
  if (shape.T > kMaxLength || shape.S > kMaxLength)
    reject("query", query, "sequence lengths must stay below " + std::to_string(kMaxLength));
  return shape;
}

void read_optional_operands(Reader<ffi::RemainingArgs>& args, const Options& options, Problem& problem) {
  const Shape& s = problem.shape;
  const Sizes plane{s.V, s.B, s.N, s.T, s.S};
  if (options.has_bias) {
    const ffi::AnyBuffer bias = args.next("bias");
    expect_sizes("bias", bias, plane, {true, true, true, true, true});
    problem.bias_dtype = float_dtype("bias", bias);
    problem.bias = plane_of<const void*>(bias);
  }
  if (options.has_mask) {
    const ffi::AnyBuffer mask = args.next("mask");
    expect_dtype("mask", mask, ffi::DataType::PRED);
    expect_sizes("mask", mask, plane, {true, true, true, true, true});
    problem.mask = plane_of<const uint8_t*>(mask);
  }
  const auto read_lengths = [&](const char* name, Lengths& lengths) {
    const ffi::AnyBuffer buffer = args.next(name);
    expect_dtype(name, buffer, ffi::DataType::S32);
    expect_sizes(name, buffer, {s.V, s.B}, {true, false});
    const auto stride = strides(buffer);
    lengths = {static_cast<const int32_t*>(buffer.untyped_data()), stride[0], stride[1]};
  };
  if (options.has_query_lengths) read_lengths("query_seq_lengths", problem.query_lengths);
  if (options.has_key_value_lengths) read_lengths("key_value_seq_lengths", problem.key_value_lengths);
}

Problem read_problem(Reader<ffi::RemainingArgs>& args, const Options& options, int64_t mapped) {
  const ffi::AnyBuffer query = args.next("query"), key = args.next("key"), value = args.next("value");
  Problem problem;
  problem.shape = shape_of(query, key, mapped);
  const Shape& s = problem.shape;
  problem.dtype = float_dtype("query", query);
  expect_dtype("key", key, query.element_type());
  expect_dtype("value", value, query.element_type());
  expect_sizes("query", query, {s.V, s.B, s.T, s.N, s.D}, {true, false, false, false, false});
  expect_sizes("key", key, {s.V, s.B, s.S, s.K, s.D}, {true, false, false, false, false});
  expect_sizes("value", value, {s.V, s.B, s.S, s.K, s.D}, {true, false, false, false, false});
  problem.scale = options.scale;
  problem.band = {options.band_left, options.band_right};
  problem.query = rows_of<InRows>(query);
  problem.key = rows_of<InRows>(key);
  problem.value = rows_of<InRows>(value);
  read_optional_operands(args, options, problem);
  return problem;
}

float* read_statistics(const char* name, const ffi::AnyBuffer& buffer, const Shape& s) {
  expect_dtype(name, buffer, ffi::DataType::F32);
  expect_sizes(name, buffer, {s.V, s.B, s.T, s.N}, {false, false, false, false});
  return static_cast<float*>(buffer.untyped_data());
}

ffi::AnyBuffer expect_rows(const char* name, const ffi::AnyBuffer& buffer, const Problem& problem,
                           int64_t length, int64_t heads, bool may_repeat) {
  if (float_dtype(name, buffer) != problem.dtype) reject(name, buffer, "it must have the dtype of query");
  const Shape& s = problem.shape;
  expect_sizes(name, buffer, {s.V, s.B, length, heads, s.D}, {may_repeat, false, false, false, false});
  return buffer;
}

// V of the call: the leading axis of the first result.
int64_t mapped_size(ffi::RemainingRets results) {
  const ffi::AnyBuffer first = Reader<ffi::RemainingRets>(results).next("the first result");
  expect_rank("the first result", first, 5);
  return first.dimensions()[0];
}

template <typename Params>
void read_cotangents(Reader<ffi::RemainingArgs>& args, Params& params) {
  const Shape& s = params.problem.shape;
  params.out = rows_of<InRows>(expect_rows("out", args.next("out"), params.problem, s.T, s.N, true));
  params.row_max = read_statistics("row_max", args.next("row_max"), s);
  params.log_sum = read_statistics("log_sum", args.next("log_sum"), s);
  params.d_out = rows_of<InRows>(expect_rows("d_out", args.next("d_out"), params.problem, s.T, s.N, true));
  params.d_lse = read_statistics("d_lse", args.next("d_lse"), s);
}

}  // namespace

std::string describe(const ffi::AnyBuffer& buffer) {
  return std::string(dtype_name(buffer.element_type())) + "[" + join(buffer.dimensions()) + "]";
}

ForwardParams decode_forward(ffi::RemainingArgs args, ffi::RemainingRets results, const Options& options) {
  Reader<ffi::RemainingArgs> operands(args);
  Reader<ffi::RemainingRets> outputs(results);
  ForwardParams params;
  params.problem = read_problem(operands, options, mapped_size(results));
  operands.finish();
  const Shape& s = params.problem.shape;
  params.out = rows_of<OutRows>(expect_rows("out", outputs.next("out"), params.problem, s.T, s.N, false));
  params.row_max = read_statistics("row_max", outputs.next("row_max"), s);
  params.log_sum = read_statistics("log_sum", outputs.next("log_sum"), s);
  if (const int64_t size = forward_workspace(workspace_facts(params.problem));
      size > 0 && outputs.has_more()) {
    const ffi::AnyBuffer workspace = outputs.next("workspace");
    expect_dtype("workspace", workspace, ffi::DataType::F32);
    expect_sizes("workspace", workspace, {size}, {false});
    params.workspace = static_cast<float*>(workspace.untyped_data());
  }
  outputs.finish();
  return params;
}

BackwardParams decode_backward(ffi::RemainingArgs args, ffi::RemainingRets results, const Options& options) {
  Reader<ffi::RemainingArgs> operands(args);
  Reader<ffi::RemainingRets> outputs(results);
  BackwardParams params;
  params.problem = read_problem(operands, options, mapped_size(results));
  read_cotangents(operands, params);
  operands.finish();
  const Problem& problem = params.problem;
  const Shape& s = problem.shape;
  const auto gradient = [&](const char* name, int64_t length, int64_t heads) {
    return rows_of<OutRows>(expect_rows(name, outputs.next(name), problem, length, heads, false));
  };
  params.d_query = gradient("d_query", s.T, s.N);
  params.d_key = gradient("d_key", s.S, s.K);
  params.d_value = gradient("d_value", s.S, s.K);
  params.delta = read_statistics("delta", outputs.next("delta"), s);
  outputs.finish();
  return params;
}

BiasBackwardParams decode_bias_backward(ffi::RemainingArgs args, ffi::RemainingRets results,
                                        const Options& options) {
  if (!options.has_bias) throw std::invalid_argument("dhp_jax: the gradient of bias needs a bias operand");
  Reader<ffi::RemainingArgs> operands(args);
  Reader<ffi::RemainingRets> outputs(results);
  BiasBackwardParams params;
  params.problem = read_problem(operands, options, mapped_size(results));
  read_cotangents(operands, params);
  operands.finish();
  const Shape& s = params.problem.shape;
  const ffi::AnyBuffer d_bias = outputs.next("d_bias");
  expect_sizes("d_bias", d_bias, {s.V, s.B, s.N, s.T, s.S}, {false, true, true, true, true});
  if (float_dtype("d_bias", d_bias) != params.problem.bias_dtype)
    reject("d_bias", d_bias, "it must have the dtype of bias");
  const auto sizes = d_bias.dimensions();
  params.bias_shape = {sizes[0], sizes[1], sizes[3], sizes[4], sizes[2], s.K, s.D};
  params.d_bias = plane_of<void*>(d_bias);
  params.delta = read_statistics("delta", outputs.next("delta"), s);
  outputs.finish();
  return params;
}

}  // namespace dhp
