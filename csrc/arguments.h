// The epilogue arguments that every primitive takes last (EPILOGUE in pyops/schemas.def), and the checks of arguments
// that all devices share.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "epilogue.h"
#include "half_types.h"

namespace atrous {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Sizes = std::vector<int64_t>;
using SizesRef = torch::headeronly::IntHeaderOnlyArrayRef;  // sizes or strides, of a tensor for example, not owned

// The kind of slope of this name; throws if there is none.
Slope slope_of(std::string_view kind);

// Memory order of a dense (N, C, *spatial) tensor.
enum class Order { channels_first, channels_last };
torch::headeronly::MemoryFormat memory_format(Order order);

// The arguments after z, in the order of pyops/core/spec.py. By default y = z.
struct Epilogue {
  OptionalTensor mean, var, gamma, beta, slope, residual;
  Slope slope_kind = Slope::number;
  double eps = 0, slope_value = 1, slope_upper = 1;
  bool residual_after_act = false;
  OptionalTensor seed;
  double dropout = 0;

  // The types of these members, in order; OpAdapter compares their number with the schema's.
  using Types = std::tuple<OptionalTensor, OptionalTensor, OptionalTensor, OptionalTensor, OptionalTensor,
                           OptionalTensor, Slope, double, double, double, bool, OptionalTensor, double>;

  Residual place() const;
  // True if the epilogue draws random numbers, for its slopes or for dropout.
  bool draws() const { return slope_kind == Slope::random || dropout > 0; }
  // The residual's elements, of storage type S; null without a residual.
  template <class S = void>
  const S* residual_data() const {
    return residual ? static_cast<const S*>(residual->const_data_ptr()) : nullptr;
  }
  // Throws if an argument does not fit an output of these sizes and dtype; a residual of other strides is copied.
  void fit(SizesRef sizes, SizesRef strides, ScalarType dtype);
};

Sizes to_vector(SizesRef values);
std::string to_string(SizesRef values);
// Throws unless the dtype is fp32, fp64, fp16 or bf16.
void check_floating(const char* name, const Tensor& tensor);
// Throws unless `tensor` has this dtype and shape; `model` names the tensor that they come from. A tensor of other
// strides is replaced by a copy: the strides that torch.compile predicts for its operators are not always the real
// ones.
void fit_like(const char* name, Tensor& tensor, const char* model, SizesRef sizes, SizesRef strides, ScalarType dtype);
// Throws unless the tensor is (N, C, ...) and dense in one of the orders; returns that order.
Order check_dense(const char* name, const Tensor& tensor);
// The dtype that a tensor's epilogue is computed in: fp64 for fp64, else fp32.
ScalarType wide_type(const Tensor& tensor);
// Throws unless `vector` is None or has one value per channel, at any stride; or_one also allows a single value.
void check_vector(const char* name, const OptionalTensor& vector, int64_t channels, bool or_one = false);
// Fits the arguments that the backward passes share to z; returns its order.
Order fit_gradient(Epilogue& arguments, Tensor& grad, const Tensor& z);
// Throws unless `means` is None or has 2 or 3 rows of z's channels, in z's compute dtype.
void check_means(const OptionalTensor& means, const Tensor& z);
// Throws unless there are two values, each at least `least`.
std::array<int64_t, 2> check_pair(const char* name, SizesRef values, int64_t least);

// The order in which the strides are dense: nullopt if in neither, channels_first if in both.
std::optional<Order> order_of(SizesRef sizes, SizesRef strides);
bool is_dense(SizesRef sizes, SizesRef strides, Order order);
// True if both strides address the same memory: strides of dimensions of size 1 and of empty tensors do not matter.
bool same_strides(SizesRef sizes, SizesRef a, SizesRef b);
Sizes strides_of(SizesRef sizes, Order order);

// Uninitialized tensors on the device of another: like it in every way, or a vector. These call torch directly: an
// operator that is called through the dispatcher by its name takes three times as long.
Tensor new_like(const Tensor& model);
Tensor new_vector(const Tensor& model, int64_t size, ScalarType dtype);
// A result that may not be needed: then it has no elements, and no data to write.
inline Tensor new_if(bool needed, const Tensor& model) {
  return needed ? new_like(model) : new_vector(model, 0, model.scalar_type());
}
template <class S>
S* data_if(bool needed, const Tensor& result) {
  return needed ? static_cast<S*>(result.mutable_data_ptr()) : nullptr;
}

// Calls function(pointer) with the tensor's data as const S*, where S is its storage type.
template <class Function>
void with_storage(const Tensor& tensor, Function&& function) {
  const void* data = tensor.const_data_ptr();
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return function(static_cast<const float*>(data));
    case ScalarType::Double:
      return function(static_cast<const double*>(data));
    case ScalarType::Half:
      return function(static_cast<const Half*>(data));
    case ScalarType::BFloat16:
      return function(static_cast<const BFloat16*>(data));
    default:
      STD_TORCH_CHECK(false, "expected a floating dtype, got ", torch::headeronly::toString(tensor.scalar_type()));
  }
}

}  // namespace atrous
