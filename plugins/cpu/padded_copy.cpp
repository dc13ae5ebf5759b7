#include "padded_copy.h"

#include <cstring>

#include "padding.h"

namespace na_deploy::cpu {
namespace {

size_t positions_of(const na_params& p) {
  auto positions = static_cast<size_t>(p.batch);
  for (int axis = 0; axis < p.rank; ++axis) positions *= static_cast<size_t>(p.length[axis]);
  return positions;
}

// Calls `use(row, inner)` for every row of `whole` along the last axis: the number of the row, and that of the same row
// of `inner`, a map at its beginning, or -1 where it has none.
template <typename Use>
void for_rows(const na_params& whole, const na_params& inner, const Use& use) {
  const int last = whole.rank - 1;
  int64_t rows = whole.batch;
  for (int axis = 0; axis < last; ++axis) rows *= whole.length[axis];
  for (int64_t row = 0; row < rows; ++row) {
    int64_t rest = row;
    int64_t inner_row = 0;
    int64_t step = 1;
    bool is_inside = true;
    for (int axis = last - 1; axis >= 0; --axis) {
      const int64_t at = rest % whole.length[axis];
      is_inside = is_inside && at < inner.length[axis];
      inner_row += at * step;
      rest /= whole.length[axis];
      step *= inner.length[axis];
    }
    use(row, is_inside ? inner_row + rest * step : -1);
  }
}

}  // namespace

PaddedCopy::PaddedCopy(const na_params& given) : given_(given), whole_(given) {
  const int last = given.rank - 1;
  for (int axis = 0; axis <= last; ++axis) {
    whole_.length[axis] = padded_length(given.length[axis], given.kernel_size[axis], given.dilation[axis]);
  }
  const size_t width = given.dtype == NA_FLOAT32 ? sizeof(float) : sizeof(uint16_t);
  const auto heads = static_cast<size_t>(given.heads);
  const size_t bytes = heads * static_cast<size_t>(given.head_dim) * width;  // bytes of a position's output
  const size_t positions = positions_of(whole_);
  qkv_ = make_aligned<std::byte>(positions * 3 * bytes);
  output_ = make_aligned<std::byte>(positions * bytes);
  if (given.lse != nullptr) lse_ = make_aligned<float>(positions * heads);

  const auto whole_row = static_cast<size_t>(whole_.length[last]);
  const auto own_row = static_cast<size_t>(given.length[last]);
  for_rows(whole_, given, [&](int64_t row, int64_t inner) {
    std::byte* to = qkv_.get() + static_cast<size_t>(row) * whole_row * 3 * bytes;
    size_t filled = 0;
    if (inner >= 0) {
      const auto* from = static_cast<const std::byte*>(given.query) + static_cast<size_t>(inner) * own_row * 3 * bytes;
      std::memcpy(to, from, own_row * 3 * bytes);
      filled = own_row;
    }
    for (; filled < whole_row; ++filled) std::memcpy(to + filled * 3 * bytes, given.padding, 3 * bytes);
  });
  whole_.padding = nullptr;
  whole_.query = qkv_.get();
  whole_.output = output_.get();
  whole_.lse = lse_.get();
}

void PaddedCopy::crop() const {
  const int last = given_.rank - 1;
  const size_t width = given_.dtype == NA_FLOAT32 ? sizeof(float) : sizeof(uint16_t);
  const auto heads = static_cast<size_t>(given_.heads);
  const size_t bytes = heads * static_cast<size_t>(given_.head_dim) * width;
  const auto whole_row = static_cast<size_t>(whole_.length[last]);
  const auto own_row = static_cast<size_t>(given_.length[last]);
  for_rows(whole_, given_, [&](int64_t row, int64_t inner) {
    if (inner < 0) return;
    const size_t from = static_cast<size_t>(row) * whole_row;
    const size_t to = static_cast<size_t>(inner) * own_row;
    std::memcpy(static_cast<std::byte*>(given_.output) + to * bytes, output_.get() + from * bytes, own_row * bytes);
    if (given_.lse != nullptr) {
      std::memcpy(given_.lse + to * heads, lse_.get() + from * heads, own_row * heads * sizeof(float));
    }
  });
}

}  // namespace na_deploy::cpu
