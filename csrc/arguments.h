// The arguments that every primitive ends in, checked once: what follows EPILOGUE in pyops/schemas.def.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "epilogue.h"
#include "half_types.h"

namespace atrous {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Sizes = std::vector<int64_t>;

// Memory order of a dense (N, C, *spatial) tensor: channels before space, or after it.
enum class Order { channels_first, channels_last };

struct Arguments {
  OptionalTensor mean, var, gamma, beta;
  double eps;
  std::string slope_kind;
  double slope_value, slope_upper;
  OptionalTensor slope, seed, residual;
  bool residual_after_act;
  double dropout;

  Slope kind() const;  // throws where slope_kind is unknown
  Residual place() const;
  // Throws where an argument does not fit an output of these sizes, strides and dtype.
  void check(const Sizes& sizes, const Sizes& strides, ScalarType dtype) const;
};

Sizes to_vector(torch::headeronly::IntHeaderOnlyArrayRef values);
std::string to_string(const Sizes& values);
// Throws unless `name` is of fp32, fp64, fp16 or bf16.
void check_floating(const char* name, const Tensor& tensor);
// Throws unless `tensor` is of the dtype, shape and strides of `model`, the name of another tensor.
void check_like(const char* name, const Tensor& tensor, const char* model, const Sizes& sizes, const Sizes& strides,
                ScalarType dtype);
// Throws unless `name` is a tensor of (N, C, ...) that is dense in one of the orders; returns which.
Order check_dense(const char* name, const Tensor& tensor);
// What the epilogue of such a tensor is computed in.
ScalarType wide_type(const Tensor& tensor);
// Throws unless `vector` is None or has one value a channel, of any stride; or_one: or one for all.
void check_vector(const char* name, const OptionalTensor& vector, int64_t channels, bool or_one = false);
// Checks what the two passes of the gradient share; the order of z, and of grad.
Order check_gradient(const Arguments& arguments, const Tensor& grad, const Tensor& z);
// Throws unless `means` is None or fits z.
void check_means(const OptionalTensor& means, const Tensor& z);
// Throws unless there are two, none below `least`.
std::array<int64_t, 2> check_pair(const char* name, const Sizes& values, int64_t least);

// nullopt where the strides are dense in neither order; channels_first where they are in both.
std::optional<Order> order_of(const Sizes& sizes, const Sizes& strides);
// Whether both lead to the same memory: the stride of a size of 1 says nothing, nor does any in an empty tensor.
bool same_strides(const Sizes& sizes, const Sizes& a, const Sizes& b);
Sizes strides_of(const Sizes& sizes, Order order);

// Calls run(pointer) with the tensor's data as const S*, S being its storage type.
template <class Run>
void with_storage(const Tensor& tensor, Run&& run) {
  const void* data = tensor.const_data_ptr();
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return run(static_cast<const float*>(data));
    case ScalarType::Double:
      return run(static_cast<const double*>(data));
    case ScalarType::Half:
      return run(static_cast<const Half*>(data));
    default:
      return run(static_cast<const BFloat16*>(data));
  }
}

}  // namespace atrous
