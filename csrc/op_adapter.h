// Adapts a primitive, which takes its epilogue arguments as one struct, to the flat argument list of its schema.
#pragma once

#include <torch/csrc/stable/library.h>

#include "arguments.h"

namespace atrous {

// call(head..., epilogue arguments one by one) calls FUNCTION(arguments, head...).
template <auto FUNCTION>
struct OpAdapter;

template <class Result, class... Head, Result (*FUNCTION)(const Arguments&, Head...)>
struct OpAdapter<FUNCTION> {
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
