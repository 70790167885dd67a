// The schemas of the primitives, and what runs them on the CPU.
#include <torch/csrc/stable/library.h>

#include "cpu/primitives.h"

namespace {

using atrous::OptionalTensor;
using atrous::Tensor;

// FUNCTION(arguments, head...) as the schemas have it: head..., then the arguments of the epilogue one by one.
template <auto FUNCTION>
struct Flat;

template <class Result, class... Head, Result (*FUNCTION)(const atrous::Arguments&, Head...)>
struct Flat<FUNCTION> {
  static Result call(std::decay_t<Head>... head, OptionalTensor mean, OptionalTensor var, OptionalTensor gamma,
                     OptionalTensor beta, double eps, std::string slope_kind, double slope_value, double slope_upper,
                     OptionalTensor slope, OptionalTensor seed, OptionalTensor residual, bool residual_after_act,
                     double dropout) {
    return FUNCTION({mean, var, gamma, beta, eps, slope_kind, slope_value, slope_upper, slope, seed, residual,
                     residual_after_act, dropout},
                    head...);
  }
};

}  // namespace

#define OP(schema) m.def(schema);
STABLE_TORCH_LIBRARY(atrous, m) {
#include "../pyops/schemas.def"
}

STABLE_TORCH_LIBRARY_IMPL(atrous, CPU, m) {
  m.impl("_epilogue", TORCH_BOX(&Flat<&atrous::cpu::epilogue>::call));
  m.impl("_epilogue_again", TORCH_BOX(&Flat<&atrous::cpu::epilogue>::call));
  m.impl("_epilogue_reduce", TORCH_BOX(&Flat<&atrous::cpu::epilogue_reduce>::call));
  m.impl("_epilogue_backward", TORCH_BOX(&Flat<&atrous::cpu::epilogue_backward>::call));
  m.impl("_statistics", TORCH_BOX(&atrous::cpu::statistics));
  m.impl("_conv_epilogue", TORCH_BOX(&Flat<&atrous::cpu::conv_epilogue>::call));
  m.impl("_winograd_weight", TORCH_BOX(&atrous::cpu::winograd_weight));
  m.impl("_winograd_epilogue", TORCH_BOX(&Flat<&atrous::cpu::winograd_epilogue>::call));
}
