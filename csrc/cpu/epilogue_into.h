// The epilogue into memory that exists.
#pragma once

#include "../arguments.h"

namespace atrous::cpu {

// Writes the epilogue of z to y, which may be z itself.
void epilogue_into(const Epilogue& arguments, const Tensor& z, const Tensor& y);

}  // namespace atrous::cpu
