// From what the dispatcher calls to a primitive.
#pragma once

#include <torch/csrc/stable/library.h>

#include "arguments.h"

namespace atrous {

// FUNCTION(arguments, head...) as the schemas have it: head..., then the arguments of the epilogue one by one.
template <auto FUNCTION>
struct Flat;

template <class Result, class... Head, Result (*FUNCTION)(const Arguments&, Head...)>
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

}  // namespace atrous
