// For convolutions of 4 input channels, such as a stem whose 3 are padded.
#pragma once

#include <cutlass/conv/conv2d_problem_size.h>
#include <cutlass/matrix_coord.h>

namespace atrous::cuda {

// A step of the reduction covers several positions of the kernel, and the last step more than there are. CUTLASS's
// iterator reads x there too, to multiply it by zero weights: which is not zero where x is inf or NaN. This one does
// not.
template <class Iterator>
class InsideWindow : public Iterator {
 public:
  using Sizes = cutlass::conv::Conv2dProblemSize;

  CUTLASS_HOST_DEVICE InsideWindow(const typename Iterator::Params& params, const Sizes& sizes,
                                   const typename Iterator::Element* x, int thread, const cutlass::MatrixCoord& offset)
      : Iterator(params, sizes, x, thread, offset),
        sizes_(sizes),
        position_((offset.column() + Iterator::ThreadMap::initial_offset(thread).contiguous()) / CHANNELS) {}

  CUTLASS_HOST_DEVICE void set_iteration_index(int index) {
    Iterator::set_iteration_index(index);
    access_ = index % Iterator::kAccessesPerVector;
  }
  CUTLASS_HOST_DEVICE InsideWindow& operator++() {
    Iterator::operator++();
    access_ = (access_ + 1) % Iterator::kAccessesPerVector;
    return *this;
  }
  CUTLASS_HOST_DEVICE void advance() {
    Iterator::advance();
    position_ += Iterator::Shape::kColumn / CHANNELS;
  }
  CUTLASS_HOST_DEVICE bool valid() const { return position_ + access_ < sizes_.R * sizes_.S && Iterator::valid(); }

 private:
  static constexpr int CHANNELS = Iterator::AccessType::kElements;
  const Sizes& sizes_;
  int position_;
  int access_ = 0;
};

}  // namespace atrous::cuda
