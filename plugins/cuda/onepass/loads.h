// Loads of the one-pass kernel's threads: rows of queries, keys and values, 16 bytes at a time.
#pragma once

#include <cstdint>

#include "device.h"
#include "onepass/places.h"
#include "onepass/plan.h"
#include "problem.h"
#include "shape.h"

namespace na_deploy::cuda::onepass {

template <typename T, int kDim>
class Loads {
 protected:
  static constexpr int kRowBytes = kDim * 2;
  using R = Rows<kRowBytes>;
  static constexpr int kPieces = R::kPieces;
  static constexpr int kOwn = kDim / 16;         // pieces of queries that a lane brings, and takes away
  static constexpr int kOwnRows = 32 / kPieces;  // rows of a warp at a time

  NA_DEVICE Loads(const CudaProblem& problem, const Plan& plan) : p_(problem), plan_(plan), room_(plan.room) {}

  NA_DEVICE static int lane() { return dev::thread() % 32; }
  NA_DEVICE static int warp() { return dev::thread() / 32; }
  NA_DEVICE dev::Shared stage_at(int number) const {
    return dev::shared_base() + static_cast<dev::Shared>(number * room_.stage);
  }
  NA_DEVICE RowSeen& seen(int row) const {
    return dev::shared_object<RowSeen>(room_.seen + (warp() * kRowQueries + row) * static_cast<int>(sizeof(RowSeen)));
  }
  // Returns the first of the four rows that the thread loads in trip `trip`; the others follow at a distance of
  // kOwnRows.
  NA_DEVICE int first_row(int trip) const {
    return (trip * plan_.warps + warp()) * kTrip * kOwnRows + lane() / kPieces;
  }
  // Returns the place of the positions of these rows.
  NA_DEVICE int sources_at(int trip) const {
    return room_.positions + ((trip * plan_.warps + warp()) * kOwnRows + lane() / kPieces) * 16;
  }

  // Finds the sources and targets of the thread's pieces.
  NA_DEVICE void begin_loads(const Tile& tile) {
    has_piece_ = dev::thread() % kPieces * 8 < p_.head_dim;
    if (dev::thread() < kPieces) find_pieces(tile);
    place_ = R::at(0, first_row(0), lane() % kPieces);
  }

  // Describes piece number dev::thread().
  NA_DEVICE void find_pieces(const Tile& tile) const {
    const int32_t key_head = quotient(tile.head, p_.by_heads_per_key);
    const auto at = [piece = dev::thread(), &p = p_](const void* tensor, int32_t head) {
      return reinterpret_cast<uint64_t>(tensor) + static_cast<uint64_t>(head * p.head_dim + piece * 8) * 2;
    };
    dev::shared_object<PieceOfQuery>(pieces_at(0, dev::thread())) = {at(p_.query, tile.head), at(p_.output, tile.head)};
    dev::shared_object<PieceOfKey>(pieces_at(1, dev::thread())) = {at(p_.key, key_head), at(p_.value, key_head)};
  }
  NA_DEVICE int pieces_at(int half, int piece) const { return room_.pieces + (half * kPieces + piece) * 16; }

  // Finds the sources of the thread's rows, and loads the rows that are the same for all images.
  NA_DEVICE void load_constants(const Tile& tile, const Corner& corner) const {
    const int at_once = rows_at_once(plan_.warps, kRowBytes);
    const int piece = lane() % kPieces;
    const T* const key = static_cast<const T*>(p_.padding_key) + tile.head * p_.head_dim + piece * 8;
    const T* const value = static_cast<const T*>(p_.padding_value) + tile.head * p_.head_dim + piece * 8;
    NA_NO_UNROLL
    for (int trip = 0; trip * kTrip * at_once < plan_.rows; ++trip) {
      auto* const sources = &dev::shared_object<int32_t>(sources_at(trip));
      NA_NO_UNROLL
      for (int i = piece; i < kTrip; i += kPieces) {
        const int32_t position = key_position(p_, plan_, tile, corner, first_row(trip) + i * kOwnRows);
        sources[i] = position < 0 ? position : position * (p_.key_position / 8);
      }
      dev::sync_warp();
      NA_NO_UNROLL
      for (int i = 0; i < kTrip; ++i) {
        const int32_t row = first_row(trip) + i * kOwnRows;
        if ((sources[i] >= 0 && has_piece_) || row >= plan_.rows) continue;
        for (int n = 0; n < plan_.stages; ++n) {
          const dev::Shared to = R::at(stage_at(n), row, piece);
          dev::copy_ahead(to, key, has_piece_ && sources[i] == kPadding);
          dev::copy_ahead(to + static_cast<dev::Shared>(room_.values), value, has_piece_ && sources[i] == kPadding);
        }
      }
    }
    NA_UNROLL
    for (int i = 0; i < kOwn; ++i) {
      if (has_piece_ && own_position(i) >= 0) continue;
      for (int n = 0; n < plan_.stages; ++n) dev::copy_ahead(own_from(own_at(stage_at(n)), i), p_.query, false);
    }
  }

  NA_DEVICE dev::Shared own_at(dev::Shared stage) const {
    return R::at(stage + static_cast<dev::Shared>(room_.queries), warp() * kRowQueries + lane() / kPieces,
                 lane() % kPieces);
  }

  // Returns the place of the lane's piece `i` from that of piece 0: rows are swizzled alike again after eight.
  NA_DEVICE static dev::Shared own_from(dev::Shared first, int i) {
    constexpr int kAlike = 8 / kOwnRows;
    const int swizzle = kOwnRows < 8 ? i % kAlike * kOwnRows * 16 : 0;
    return (first ^ static_cast<dev::Shared>(swizzle)) + static_cast<dev::Shared>(i * kOwnRows * kRowBytes);
  }

  // Returns the position of the query whose pieces the lane moves.
  NA_DEVICE int32_t own_position(int i) const { return seen(lane() / kPieces + i * kOwnRows).position; }

  // Returns the thread's PieceOfQuery or PieceOfKey, as words.
  NA_DEVICE dev::Bytes16 own_pieces(int half) const {
    return dev::load_shared16(dev::shared_base() + static_cast<dev::Shared>(pieces_at(half, lane() % kPieces)));
  }
  NA_DEVICE static uint64_t address(uint32_t low, uint32_t high) { return low | static_cast<uint64_t>(high) << 32; }
  NA_DEVICE static void copy(dev::Shared to, uint64_t from) {
    dev::copy_ahead(to, reinterpret_cast<const void*>(from));
  }

  // Loads the thread's share of queries, keys and values of the images from `image` on.
  NA_DEVICE void load(int32_t image, dev::Shared stage) const {
    if (!has_piece_) return;
    const dev::Bytes16 query = own_pieces(0);
    const auto query_bytes = static_cast<uint32_t>(p_.query_position) * 2;
    const auto first = static_cast<uint32_t>(image * p_.positions);
    const dev::Shared own = own_at(stage);
    int32_t position[kOwn];  // all are read before the first copy, because reads between copies cost dummy instructions
    NA_UNROLL
    for (int i = 0; i < kOwn; ++i) position[i] = own_position(i);
    NA_UNROLL
    for (int i = 0; i < kOwn; ++i) {
      const uint32_t number = first + static_cast<uint32_t>(position[i]);
      const uint64_t from = dev::element_at(address(query.word[0], query.word[1]), number, query_bytes);
      if (position[i] >= 0) copy(own_from(own, i), from);
    }
    const dev::Bytes16 base = own_pieces(1);
    const uint64_t further = static_cast<uint64_t>(first) * (static_cast<uint32_t>(p_.key_position) * 2);
    const uint64_t key = address(base.word[0], base.word[1]) + further;
    const uint64_t value = address(base.word[2], base.word[3]) + further;
    dev::Shared to = stage + place_;
    dev::Shared from = dev::shared_base() + static_cast<dev::Shared>(sources_at(0));
    const dev::Shared end = dev::shared_base() + static_cast<dev::Shared>(room_.list);
    NA_NO_UNROLL
    for (; from < end; from += static_cast<dev::Shared>(plan_.warps * kOwnRows * 16)) {
      const dev::Bytes16 sources = dev::load_shared16(from);
      const dev::Shared to_value = to + static_cast<dev::Shared>(room_.values);
      NA_UNROLL
      for (int i = 0; i < kTrip; ++i) {
        if (static_cast<int32_t>(sources.word[i]) >= 0) {
          const uint64_t at = static_cast<uint64_t>(sources.word[i]) * 16;
          copy(own_from(to, i), key + at);
          copy(own_from(to_value, i), value + at);
        }
      }
      to += static_cast<dev::Shared>(plan_.warps * kTrip * kOwnRows * kRowBytes);
    }
  }

  const CudaProblem& p_;
  const Plan& plan_;
  const Room& room_;
  bool has_piece_ = false;  // false behind a head's last channel, where zeros stand
  dev::Shared place_ = 0;   // place, from a stage, of the first row that the thread loads
};

}  // namespace na_deploy::cuda::onepass
