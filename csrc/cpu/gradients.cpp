// _epilogue_gradients: both passes of the backward in one call, for batch statistics that no other process shares.
#include <numeric>

#include "../op_adapter.h"
#include "gradient.h"

namespace atrous::cpu {

namespace {

// The gradient of a vector of the epilogue from its sum per channel, in the vector's dtype and shape: a shared slope
// adds up the channels.
template <class T>
Tensor vector_gradient(const Tensor& vector, const T* sums, int64_t channels) {
  Tensor result = new_vector(vector, vector.size(0), vector.scalar_type());
  with_storage(vector, [&](auto* data) {
    using S = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    S* values = static_cast<S*>(result.mutable_data_ptr());
    if (vector.size(0) == channels)
      for (int64_t i = 0; i < channels; ++i) values[i] = narrow<S>(sums[i]);
    else
      values[0] = narrow<S>(std::accumulate(sums, sums + channels, 0.0));
  });
  return result;
}

// Writes dz and du and returns the sums; the second pass runs only where one of its results is needed.
template <class S>
std::vector<Wide<S>> both_passes(const GradientInputs<S>& inputs, bool batch_stats, bool need_sums, S* dz, S* du) {
  const int64_t channels = inputs.layout.own_channels();
  const bool with_means = batch_stats && dz && inputs.batch_norm;
  std::vector<Wide<S>> sums, means;
  if (need_sums || with_means) sums = gradient_sums(inputs);
  if (with_means) {
    means.assign(sums.begin(), sums.begin() + 2 * channels);
    for (auto& mean : means) mean /= inputs.layout.size() / channels;
  }
  if (dz || du) write_gradients(inputs, with_means ? means.data() : nullptr, dz, du);
  return sums;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> epilogue_gradients(Epilogue& arguments, Tensor& grad,
                                                                      const Tensor& z, bool batch_stats, bool need_z,
                                                                      bool need_residual, bool need_vectors) {
  const Order order = fit_gradient(arguments, grad, z);
  const int64_t channels = z.size(1);
  Tensor dz = new_if(need_z, z), du = new_if(need_residual, z);
  OptionalTensor vectors[3];
  with_storage(z, [&](auto* data) {
    using S = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    std::vector<Wide<S>> sums(3 * channels);
    if (z.numel()) {
      const Layout layout(z, order);
      sums = both_passes(GradientInputs<S>(arguments, grad, data, layout), batch_stats, need_vectors,
                         data_if<S>(need_z, dz), data_if<S>(need_residual, du));
    }
    const OptionalTensor none, *slope = arguments.slope_kind == Slope::tensor ? &arguments.slope : &none;
    const OptionalTensor* of[3] = {&arguments.beta, &arguments.gamma, slope};
    for (int i = 0; i < 3; ++i)
      if (need_vectors && *of[i]) vectors[i] = vector_gradient(**of[i], sums.data() + i * channels, channels);
  });
  for (OptionalTensor& vector : vectors)
    if (!vector) vector = new_if(false, z);
  return {dz, du, *vectors[1], *vectors[0], *vectors[2]};
}

STABLE_TORCH_LIBRARY_IMPL(atrous, CPU, m) { m.impl("_epilogue_gradients", &OpAdapter<&epilogue_gradients>::call); }

}  // namespace atrous::cpu
