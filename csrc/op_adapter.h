// Adapts a primitive, which takes its epilogue arguments as one struct, to the flat argument list of its schema.
//
// Each primitive checks its arguments, throws an error that names the invalid one, and is registered beside its
// definition.
#pragma once

#include <torch/csrc/stable/library.h>

#include <tuple>
#include <utility>

#include "arguments.h"

namespace atrous {

// call(stack, ...) is FUNCTION(epilogue, head...) for a schema (head..., EPILOGUE). TORCH_BOX would copy every argument
// three times on the way.
template <auto FUNCTION>
struct OpAdapter;

template <class Result, class... Head, Result (*FUNCTION)(const Epilogue&, Head...)>
struct OpAdapter<FUNCTION> {
  static void call(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
    constexpr uint64_t HEAD = sizeof...(Head);
    STD_TORCH_CHECK(inputs == HEAD + Epilogue::SIZE, "expected a schema of ", HEAD + Epilogue::SIZE, " arguments, got ",
                    inputs);
    unbox(stack, std::index_sequence_for<Head...>());
  }

 private:
  template <size_t... INDEX>
  static void unbox(StableIValue* stack, std::index_sequence<INDEX...>) {
    const std::tuple<std::decay_t<Head>...> head{torch::stable::detail::to<std::decay_t<Head>>(stack[INDEX])...};
    const Epilogue epilogue = Epilogue::unbox(stack + sizeof...(Head));
    box(stack, FUNCTION(epilogue, std::get<INDEX>(head)...));
  }
  static void box(StableIValue* stack, const Tensor& result) { *stack = torch::stable::detail::from(result); }
  template <class... Tensors>
  static void box(StableIValue* stack, const std::tuple<Tensors...>& results) {
    std::apply([&](const auto&... result) { ((*stack++ = torch::stable::detail::from(result)), ...); }, results);
  }
};

}  // namespace atrous
