// The epilogue, as other operators call it.
#pragma once

#include "../arguments.h"

namespace atrous::cpu {

Tensor epilogue(Epilogue& arguments, const Tensor& z);
// Writes the epilogue of z to y, which may be z itself.
void epilogue_into(Epilogue& arguments, const Tensor& z, const Tensor& y);

}  // namespace atrous::cpu
