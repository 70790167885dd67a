// Adapts a primitive, which takes its epilogue arguments as one struct, to the flat argument list of its schema.
//
// Each primitive checks its arguments, throws an error that names the invalid one, and is registered beside its
// definition.
#pragma once

#include <torch/csrc/stable/library.h>

#include <string_view>
#include <tuple>
#include <utility>

#include "arguments.h"

namespace atrous {

// A string argument, which is freed. torch's own conversion allocates a copy that it never frees.
class OwnedString {
 public:
  explicit OwnedString(StableIValue value) : handle_(torch::stable::detail::to<StringHandle>(value)) {}
  OwnedString(const OwnedString&) = delete;
  OwnedString& operator=(const OwnedString&) = delete;
  ~OwnedString() { torch_delete_string(handle_); }

  std::string_view view() const {
    size_t size;
    const char* data;
    TORCH_ERROR_CODE_CHECK(torch_string_length(handle_, &size));
    TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle_, &data));
    return {data, size};
  }

 private:
  StringHandle handle_;
};

template <class T>
T unbox(StableIValue value) {
  if constexpr (std::is_same_v<T, Slope>)
    return slope_of(OwnedString(value).view());
  else
    return torch::stable::detail::to<T>(value);
}

// call(stack, ...) is FUNCTION(epilogue, head...) for a schema (head..., EPILOGUE). TORCH_BOX would copy every argument
// three times on the way.
template <auto FUNCTION, class Types = Epilogue::Types>
struct OpAdapter;

template <class Result, class... Head, Result (*FUNCTION)(Epilogue&, Head...), class... Tail>
struct OpAdapter<FUNCTION, std::tuple<Tail...>> {
  static void call(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
    constexpr uint64_t size = sizeof...(Head) + sizeof...(Tail);
    STD_TORCH_CHECK(inputs == size, "expected a schema of ", size, " arguments, got ", inputs);
    run(stack, std::index_sequence_for<Head...>(), std::index_sequence_for<Tail...>());
  }

 private:
  template <size_t... HEAD, size_t... TAIL>
  static void run(StableIValue* stack, std::index_sequence<HEAD...>, std::index_sequence<TAIL...>) {
    std::tuple<std::decay_t<Head>...> head{unbox<std::decay_t<Head>>(stack[HEAD])...};
    Epilogue epilogue{unbox<Tail>(stack[sizeof...(Head) + TAIL])...};
    box(stack, FUNCTION(epilogue, std::get<HEAD>(head)...));
  }
  static void box(StableIValue* stack, const Tensor& result) { *stack = torch::stable::detail::from(result); }
  template <class... Tensors>
  static void box(StableIValue* stack, const std::tuple<Tensors...>& results) {
    std::apply([&](const auto&... result) { ((*stack++ = torch::stable::detail::from(result)), ...); }, results);
  }
};

}  // namespace atrous
