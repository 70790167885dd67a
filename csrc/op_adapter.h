// Adapts a primitive, which takes its epilogue arguments as one struct, to the flat argument list of its schema.
//
// Each primitive checks its arguments, throws an error that names the invalid one, and is registered beside its
// definition.
#pragma once

#include <torch/csrc/stable/library.h>

#include "arguments.h"

namespace atrous {

// call(head..., epilogue arguments one by one) calls FUNCTION(epilogue, head...).
template <auto FUNCTION, class Types = Epilogue::Types>
struct OpAdapter;

template <class Result, class... Head, Result (*FUNCTION)(const Epilogue&, Head...), class... Tail>
struct OpAdapter<FUNCTION, std::tuple<Tail...>> {
  static Result call(std::decay_t<Head>... head, Tail... tail) { return FUNCTION(Epilogue{tail...}, head...); }
};

}  // namespace atrous
