#include "arguments.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/stableivalue_conversions.h>

#include <algorithm>
#include <iterator>

namespace atrous {

namespace {

bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
         type == ScalarType::BFloat16;
}

// The dimension at this place, counted from the innermost.
size_t dimension(size_t place, size_t rank, Order order) {
  if (order == Order::channels_first) return rank - 1 - place;
  return place == 0 ? 1 : place + 1 == rank ? 0 : rank - place;
}

int32_t dtype_of(const Tensor& tensor) {
  int32_t dtype = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  return dtype;
}

Tensor empty_strided(const Tensor& model, SizesRef sizes, SizesRef strides, int32_t dtype) {
  int32_t device = 0, index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(model.get(), &device));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(model.get(), &index));
  AtenTensorHandle result = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(), dtype, device, index, &result));
  return Tensor(result);
}

}  // namespace

torch::headeronly::MemoryFormat memory_format(Order order) {
  using torch::headeronly::MemoryFormat;
  return order == Order::channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

Sizes to_vector(SizesRef values) { return {values.begin(), values.end()}; }

std::string to_string(SizesRef values) {
  std::string text = "[";
  for (size_t i = 0; i < values.size(); ++i) text += (i ? ", " : "") + std::to_string(values[i]);
  return text + "]";
}

void check_floating(const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(is_floating(tensor.scalar_type()), name,
                  ": expected dtype float32, float64, float16 or bfloat16, got ",
                  torch::headeronly::toString(tensor.scalar_type()));
}

ScalarType wide_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

void fit_like(const char* name, Tensor& tensor, const char* model, SizesRef sizes, SizesRef strides, ScalarType dtype) {
  check_floating(name, tensor);
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, ": expected dtype ", torch::headeronly::toString(dtype),
                  " like ", model, ", got ", torch::headeronly::toString(tensor.scalar_type()));
  const SizesRef shape = tensor.sizes();
  const bool same = std::equal(shape.begin(), shape.end(), sizes.begin(), sizes.end());
  STD_TORCH_CHECK(same, name, ": expected shape ", to_string(sizes), ", got ", to_string(shape));
  if (same_strides(sizes, tensor.strides(), strides)) return;
  Tensor copy = empty_strided(tensor, sizes, strides, dtype_of(tensor));
  torch::stable::copy_(copy, tensor);
  tensor = copy;
}

Order check_dense(const char* name, const Tensor& tensor) {
  check_floating(name, tensor);
  const SizesRef sizes = tensor.sizes(), strides = tensor.strides();
  STD_TORCH_CHECK(sizes.size() >= 2, name, ": expected at least 2-D (N, C, ...), got shape ", to_string(sizes));
  const std::optional<Order> order = order_of(sizes, strides);
  STD_TORCH_CHECK(order, name, ": expected contiguous or channels_last strides, got shape ", to_string(sizes),
                  ", strides ", to_string(strides));
  return *order;
}

bool same_strides(SizesRef sizes, SizesRef a, SizesRef b) {
  bool same = true;
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] == 0) return true;
    same = same && (sizes[i] == 1 || a[i] == b[i]);
  }
  return same;
}

void check_vector(const char* name, const OptionalTensor& vector, int64_t channels, bool or_one) {
  if (!vector) return;
  check_floating(name, *vector);
  const bool fits = vector->dim() == 1 && (vector->size(0) == channels || (or_one && vector->size(0) == 1));
  STD_TORCH_CHECK(fits, name, ": expected shape [", channels, "]", or_one ? " or [1]" : "", ", got ",
                  to_string(vector->sizes()));
}

std::array<int64_t, 2> check_pair(const char* name, SizesRef values, int64_t least) {
  bool fits = values.size() == 2;
  for (int64_t value : values) fits = fits && value >= least && value <= INT32_MAX;
  STD_TORCH_CHECK(fits, name, ": expected two ints of at least ", least, ", got ", to_string(values));
  return {values[0], values[1]};
}

Order fit_gradient(Epilogue& arguments, Tensor& grad, const Tensor& z) {
  const Order order = check_dense("z", z);
  fit_like("grad", grad, "z", z.sizes(), z.strides(), z.scalar_type());
  arguments.fit(z.sizes(), z.strides(), z.scalar_type());
  return order;
}

void check_means(const OptionalTensor& means, const Tensor& z) {
  if (!means) return;
  check_floating("means", *means);
  const SizesRef sizes = means->sizes();
  const bool fits = sizes.size() == 2 && (sizes[0] == 2 || sizes[0] == 3) && sizes[1] == z.size(1);
  STD_TORCH_CHECK(fits, "means: expected shape [2, ", z.size(1), "] or [3, ", z.size(1), "], got ", to_string(sizes));
  STD_TORCH_CHECK(means->scalar_type() == wide_type(z), "means: expected dtype ",
                  torch::headeronly::toString(wide_type(z)), ", got ",
                  torch::headeronly::toString(means->scalar_type()));
}

Sizes strides_of(SizesRef sizes, Order order) {
  Sizes strides(sizes.size());
  int64_t stride = 1;
  for (size_t place = 0; place < sizes.size(); ++place) {
    const size_t axis = dimension(place, sizes.size(), order);
    strides[axis] = stride;
    stride *= std::max<int64_t>(sizes[axis], 1);
  }
  return strides;
}

bool is_dense(SizesRef sizes, SizesRef strides, Order order) {
  bool dense = true;
  int64_t stride = 1;
  for (size_t place = 0; place < sizes.size(); ++place) {
    const size_t axis = dimension(place, sizes.size(), order);
    dense = dense && (sizes[axis] == 1 || strides[axis] == stride);
    stride *= sizes[axis];
  }
  return dense || stride == 0;  // 0: no elements
}

std::optional<Order> order_of(SizesRef sizes, SizesRef strides) {
  for (Order order : {Order::channels_first, Order::channels_last})
    if (is_dense(sizes, strides, order)) return order;
  return std::nullopt;
}

Tensor new_like(const Tensor& model) { return empty_strided(model, model.sizes(), model.strides(), dtype_of(model)); }

Tensor new_vector(const Tensor& model, int64_t size, ScalarType dtype) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  const int64_t stride = 1;
  return empty_strided(model, SizesRef(size), SizesRef(stride), to<int32_t>(from(dtype)));
}

Slope slope_of(std::string_view kind) {
  for (size_t i = 0; i < std::size(SLOPE_KINDS); ++i)
    if (kind == SLOPE_KINDS[i]) return static_cast<Slope>(i);
  std::string known;
  for (const char* name : SLOPE_KINDS) known += std::string(known.empty() ? "" : ", ") + name;
  STD_TORCH_CHECK(false, "slope_kind: expected one of ", known, ", got '", kind, "'");
}

Residual Epilogue::place() const {
  if (!residual) return Residual::none;
  return residual_after_act ? Residual::after : Residual::before;
}

void Epilogue::fit(SizesRef sizes, SizesRef strides, ScalarType dtype) {
  const int64_t channels = sizes[1];
  STD_TORCH_CHECK(mean.has_value() == var.has_value(), "mean and var: expected both or neither, got only ",
                  mean ? "mean" : "var");
  STD_TORCH_CHECK(mean || !gamma, "gamma: expected None without mean and var");
  check_vector("mean", mean, channels);
  check_vector("var", var, channels);
  check_vector("gamma", gamma, channels);
  check_vector("beta", beta, channels);
  if (slope_kind == Slope::tensor) {
    STD_TORCH_CHECK(slope, "slope: expected a tensor with slope_kind 'tensor', got None");
    check_vector("slope", slope, channels, /*or_one=*/true);
  }
  STD_TORCH_CHECK(dropout >= 0 && dropout <= 1, "dropout: expected a probability, 0 to 1, got ", dropout);
  if (draws()) {
    STD_TORCH_CHECK(seed, "seed: expected a tensor with ", dropout > 0 ? "dropout > 0" : "slope_kind 'random'",
                    ", got None");
    STD_TORCH_CHECK(seed->scalar_type() == ScalarType::Long && seed->dim() == 1 && seed->size(0) == 2,
                    "seed: expected shape [2], int64, got shape ", to_string(seed->sizes()), ", ",
                    torch::headeronly::toString(seed->scalar_type()));
  }
  if (residual) fit_like("residual", *residual, "the output", sizes, strides, dtype);
}

}  // namespace atrous
