// _epilogue_gradients: both passes of the backward in one call, for batch statistics that no other process shares.
#include <torch/csrc/stable/ops.h>

#include "ops.h"
#include "reduction.cuh"

namespace atrous::cuda {

namespace {

template <class T>
struct Total {
  T sum;

  __device__ void combine(const Total& other) { sum += other.sum; }
};

template <class T>
struct WriteTotal {
  VectorGradient gradient;

  __device__ void operator()(int64_t, const Total<T>& total) const { gradient.write(0, total.sum); }
};

// The gradient of a slope that all channels share, from the sums per channel: one block of finish_kernel.
template <class T>
void launch_shared_slope(const T* sums, int64_t channels, const VectorGradient& gradient, const Device& device) {
  const auto* totals = reinterpret_cast<const Total<T>*>(sums);
  launch("_epilogue_gradients", finish_kernel<Total<T>, WriteTotal<T>>, dim3(1), FINISH_THREADS, device, totals,
         int(channels), WriteTotal<T>{gradient});
}

VectorGradient memory_of(const Tensor& gradient) {
  return {gradient.numel() ? gradient.mutable_data_ptr() : nullptr, gradient.scalar_type()};
}

Tensor reduce_into(const Epilogue& arguments, const Tensor& grad, const Tensor& z, Order order, const Tensor& dgamma,
                   const Tensor& dbeta, const Tensor& dslope, const Device& device) {
  const int64_t channels = z.size(1);
  const bool shared = dslope.numel() == 1 && channels > 1;
  const VectorGradients gradients{memory_of(dgamma), memory_of(dbeta), shared ? VectorGradient{} : memory_of(dslope)};
  const Tensor rows = reduce_pass(arguments, grad, z, order, z.numel() / channels, gradients, device);
  if (shared)
    with_storage(rows, [&](auto* data) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
      if constexpr (std::is_same_v<T, Wide<T>>)
        launch_shared_slope(data + 2 * channels, channels, memory_of(dslope), device);
    });
  return rows;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> epilogue_gradients(Epilogue& arguments, Tensor& grad,
                                                                      const Tensor& z, bool batch_stats, bool need_z,
                                                                      bool need_residual, bool need_vectors) {
  const Order order = fit_gradient(arguments, grad, z);
  const Device device("z", z);
  device.check("grad", grad);
  device.check(arguments);
  const auto like = [&](const OptionalTensor& vector, bool exists) {
    return vector && exists ? new_vector(*vector, vector->size(0), vector->scalar_type()) : new_if(false, z);
  };
  const Tensor dz = new_if(need_z, z), du = new_if(need_residual, z), dgamma = like(arguments.gamma, need_vectors),
               dbeta = like(arguments.beta, need_vectors),
               dslope = like(arguments.slope, need_vectors && arguments.slope_kind == Slope::tensor);
  if (z.numel() == 0) {
    for (Tensor gradient : {dgamma, dbeta, dslope}) torch::stable::zero_(gradient);
    return {dz, du, dgamma, dbeta, dslope};
  }
  OptionalTensor means;
  if (need_vectors || (batch_stats && need_z))
    means = reduce_into(arguments, grad, z, order, dgamma, dbeta, dslope, device);
  if (!batch_stats) means.reset();
  if (need_z || need_residual) backward_pass(arguments, grad, z, order, means, dz, du, device);
  return {dz, du, dgamma, dbeta, dslope};
}

STABLE_TORCH_LIBRARY_IMPL(ATROUS_LIBRARY, ATROUS_CUDA_KEY, m) {
  m.impl("_epilogue_gradients", &OpAdapter<&epilogue_gradients>::call);
}

}  // namespace atrous::cuda
