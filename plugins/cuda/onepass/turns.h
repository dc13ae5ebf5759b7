// What is the same in every one-pass kernel: the turns that a block's images take, and the way of results out.
#pragma once

#include <cstdint>
#include <type_traits>

#include "device.h"
#include "onepass/loads.h"
#include "onepass/places.h"
#include "onepass/plan.h"
#include "plain_kernel.h"
#include "problem.h"
#include "shape.h"

namespace na_deploy::cuda::onepass {

// `Own`, the kernel itself, has find_keys(), which lists the keys of every warp's hull; begin(tile, corner), which
// finds the place of the warp's and returns its chunks; prepare(head, chunks), which works out the rest that is the
// same for all images; and attend(stage, image).
template <typename T, int kDim, typename Own>
class Turns : protected Loads<T, kDim> {
 public:
  NA_DEVICE void run() {
    auto& tile = dev::shared_object<Tile>(room_.tile);
    if (dev::thread() == 0) tile = tile_at(p_, plan_.grid, plan_.tile, static_cast<int32_t>(dev::block()));
    own().find_keys();
    dev::sync();
    if (tile.is_empty) return;
    const auto batch = static_cast<int32_t>(p_.batch);
    const auto last = batch - plan_.images;
    const int32_t step = plan_.images * plan_.shares;
    auto image = static_cast<int32_t>(tile.image) * plan_.images;
    const Corner corner = corner_of(plan_, tile);
    const int32_t chunks = own().begin(tile, corner);
    Base::load_constants(tile, corner);
    dev::sync();
    Base::load(smaller(image, last), stage_at(0));
    dev::commit_copies();
    own().prepare(tile.head, chunks);
    const bool ahead = plan_.stages == 2;
    for (int turn = 0; image < batch; ++turn, image += step) {
      const dev::Shared stage = stage_at(ahead ? turn % 2 : 0);
      const bool goes_on = image + step < batch;
      if (ahead && goes_on) Base::load(smaller(image + step, last), stage_at((turn + 1) % 2));
      dev::commit_copies();
      if (ahead) {
        dev::wait_copies<1>();
      } else {
        dev::wait_copies<0>();
      }
      dev::sync();
      own().attend(stage, smaller(image, last));
      dev::sync();
      if (!ahead && goes_on) Base::load(smaller(image + step, last), stage);
    }
    if (dev::any(all_ != all_)) mend(tile, last, step);
  }

 protected:
  using Base = Loads<T, kDim>;
  using Base::address;
  using Base::has_piece_;
  using Base::kOwn;
  using Base::kRowBytes;
  using Base::lane;
  using Base::own_at;
  using Base::own_from;
  using Base::own_pieces;
  using Base::own_position;
  using Base::p_;
  using Base::plan_;
  using Base::room_;
  using Base::seen;
  using Base::stage_at;
  using Base::warp;
  using typename Base::R;
  static constexpr int kSteps = kDim / 16;  // steps of 16 channels
  static constexpr uint32_t kOnes = std::is_same_v<T, dev::Half> ? 0x3C003C00U : 0x3F803F80U;

  NA_DEVICE Turns(const CudaProblem& problem, const Plan& plan) : Base(problem, plan) {}

  // Divides by the sums of weights and writes the warp's rows, gathered in shared memory where its queries were.
  NA_DEVICE void write(dev::Shared own, dev::Shared stage, const float (&sums)[2 * kSteps][4], const float (&total)[4],
                       int32_t image) {
    float both[4] = {};  // sums of the channels of the lane's two rows
    const float share[2] = {dev::reciprocal(total[0]), dev::reciprocal(total[2])};
    dev::sync_warp();
    NA_UNROLL
    for (int k = 0; k < kSteps; ++k) {
      uint32_t rows[4];
      NA_UNROLL
      for (int m = 0; m < 4; ++m) {
        const float (&from)[4] = sums[2 * k + m / 2];
        rows[m] = dev::pack<T>(from[m % 2 * 2] * share[m % 2], from[m % 2 * 2 + 1] * share[m % 2]);
      }
      dev::multiply<T>(both, rows, kOnes, kOnes);
      if (dev::stores_matrices()) {
        dev::store_matrices(own ^ static_cast<dev::Shared>(k * 32), rows);
        continue;
      }
      // Rows of eight further are swizzled alike.
      const dev::Shared queries = stage + static_cast<dev::Shared>(room_.queries);
      const dev::Shared first = R::at(queries, warp() * kRowQueries + lane() / 4, 0);
      NA_UNROLL
      for (int m = 0; m < 4; ++m) {
        const dev::Shared row = first + static_cast<dev::Shared>(m % 2 * 8 * kRowBytes);
        dev::store_shared4(
            (row ^ static_cast<dev::Shared>(k * 32 + m / 2 * 16)) + static_cast<dev::Shared>(lane() % 4 * 4), rows[m]);
      }
    }
    all_ += both[0] * both[2];
    dev::sync_warp();
    if (!has_piece_) return;
    const dev::Bytes16 base = own_pieces(0);
    const auto output_bytes = static_cast<uint32_t>(p_.heads * p_.head_dim) * 2;
    const auto first = static_cast<uint32_t>(image * p_.positions);
    const dev::Shared from = own_at(stage);
    NA_UNROLL
    for (int i = 0; i < kOwn; ++i) {
      const dev::Bytes16 piece = dev::load_shared16(own_from(from, i));
      const int32_t at = own_position(i);
      const uint64_t to =
          dev::element_at(address(base.word[2], base.word[3]), first + static_cast<uint32_t>(at), output_bytes);
      if (at >= 0) dev::store_global16(reinterpret_cast<void*>(to), piece);
    }
  }

  // Computes again, in all images, the warp's rows that hold no number: an unseen key that is not finite spoils them.
  NA_DEVICE void mend(const Tile& tile, int32_t last, int32_t step) const {
    dev::sync_warp();
    NA_NO_UNROLL
    for (auto image = static_cast<int32_t>(tile.image) * plan_.images; image < p_.batch; image += step) {
      NA_NO_UNROLL
      for (int row = 0; row < kRowQueries; ++row) {
        const int32_t at = seen(row).position;
        if (at < 0) continue;
        mend_query<T, plain_channels(kDim)>(
            p_, (int64_t{smaller(image, last)} * p_.positions + at) * p_.heads + tile.head, lane());
      }
    }
  }

 private:
  NA_DEVICE Own& own() { return static_cast<Own&>(*this); }

  float all_ = 0.0F;  // the sum of all results: no number if one of them is none
};

}  // namespace na_deploy::cuda::onepass
