#include "fuzz_problem.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "../core/padding.h"
#include "../core/window.h"

namespace na_deploy::fuzz {
namespace {

constexpr size_t kMaxElements = 1 << 16;

size_t product(const na_params& p, int64_t heads, int64_t width) {
  auto elements = static_cast<size_t>(p.batch * heads * width);
  for (int a = 0; a < p.rank; ++a) elements *= static_cast<size_t>(std::max<int64_t>(p.length[a], 0));
  return elements;
}

}  // namespace

FuzzProblem make_problem(Bytes& bytes) {
  FuzzProblem problem;
  na_params& p = problem.params;
  p.rank = static_cast<int32_t>(bytes.number(1, 3));
  p.dtype = static_cast<int32_t>(bytes.number(0, 2));
  p.packed = static_cast<int32_t>(bytes.number(0, 1));
  p.batch = bytes.number(0, 2);
  const bool has_padding = p.packed != 0 && bytes.number(0, 2) == 0;
  const bool is_dense = bytes.number(0, 4) == 0;  // one window covers each dilation group
  for (int a = 0; a < p.rank; ++a) {
    p.length[a] = bytes.number(0, p.rank == 1 ? 70 : p.rank == 2 ? 23 : 9);
    p.kernel_size[a] = bytes.number(0, p.rank == 1 ? 40 : 9);
    p.dilation[a] = bytes.number(0, 4);
    p.stride[a] = bytes.number(0, 9);
    p.is_causal[a] = bytes.number(0, 3) == 0 ? 1 : 0;
    if (is_dense) {
      p.kernel_size[a] = std::clamp<int64_t>(p.kernel_size[a], 1, p.rank == 1 ? 40 : p.rank == 2 ? 9 : 4);
      p.dilation[a] = std::clamp<int64_t>(p.dilation[a], 1, p.rank == 1 ? 4 : 2);
      p.stride[a] = std::clamp<int64_t>(p.stride[a], 1, p.kernel_size[a]);
      p.length[a] = p.kernel_size[a] * p.dilation[a];
      p.is_causal[a] = 0;
      continue;
    }
    if (bytes.number(0, 15) != 0) {  // most problems are made to fit
      p.length[a] = std::max<int64_t>(p.length[a], 1);
      if (has_padding) {  // any window fits
        p.dilation[a] = std::max<int64_t>(p.dilation[a], 1);
        p.kernel_size[a] = std::clamp<int64_t>(p.kernel_size[a], 1, 9);
        p.stride[a] = std::clamp<int64_t>(p.stride[a], 1, p.kernel_size[a]);
        continue;
      }
      p.dilation[a] = std::clamp<int64_t>(p.dilation[a], 1, p.length[a]);
      p.kernel_size[a] = std::clamp<int64_t>(p.kernel_size[a], 1, p.length[a] / p.dilation[a]);
      p.stride[a] = std::clamp<int64_t>(p.stride[a], 1, p.kernel_size[a]);
    }
  }
  p.key_heads = bytes.number(1, 3);
  p.heads = p.packed != 0 ? p.key_heads : p.key_heads * bytes.number(1, 2) + (bytes.number(0, 15) == 0 ? 1 : 0);
  p.head_dim = bytes.number(1, 70);
  p.value_dim = p.packed != 0 ? p.head_dim : bytes.number(1, 70);
  p.additional = p.packed != 0 || is_dense ? 0 : bytes.number(0, 9);
  p.scale = bytes.number(0, 1) == 0 ? 0.0F : 0.3F;

  std::mt19937 random(static_cast<uint32_t>(bytes.number(0, 255)));
  std::normal_distribution<float> normal;
  const size_t size = p.dtype == NA_FLOAT32 ? 4 : 2;
  const auto tensor = [&](size_t elements) -> const void* {
    elements = std::min(elements, kMaxElements * 64);
    std::vector<uint8_t> made(elements * size);
    for (size_t i = 0; i < elements; ++i) {
      const float number = normal(random);
      uint32_t bits;
      std::memcpy(&bits, &number, sizeof bits);
      if (p.dtype == NA_FLOAT32) std::memcpy(made.data() + 4 * i, &bits, 4);
      if (p.dtype == NA_BFLOAT16) bits >>= 16;
      if (p.dtype == NA_FLOAT16) bits = 0x3000U + bits % 0x0C00U;  // positive, below 1
      if (p.dtype != NA_FLOAT32) std::memcpy(made.data() + 2 * i, &bits, 2);
    }
    problem.tensors.push_back(std::move(made));
    return problem.tensors.back().data();
  };
  problem.tensors.reserve(8);
  p.query = tensor(product(p, p.heads, p.head_dim) * (p.packed != 0 ? 3 : 1));
  if (p.packed == 0) {
    p.key = tensor(product(p, p.key_heads, p.head_dim));
    p.value = tensor(product(p, p.key_heads, p.value_dim));
  }
  if (p.additional > 0) {
    const auto rows = static_cast<size_t>(p.batch * p.additional * p.key_heads);
    p.additional_key = tensor(rows * static_cast<size_t>(p.head_dim));
    p.additional_value = tensor(rows * static_cast<size_t>(p.value_dim));
  }
  if (has_padding) p.padding = tensor(static_cast<size_t>(3 * p.heads * p.head_dim));
  if (bytes.number(0, 1) == 0) {
    auto elements = static_cast<size_t>(p.heads);
    for (int a = 0; a < p.rank; ++a) elements *= static_cast<size_t>(std::max<int64_t>(2 * p.kernel_size[a] - 1, 0));
    p.rel_pos_bias = tensor(elements);
  }
  return problem;
}

void reference(const na_params& p, std::vector<double>& output, std::vector<double>& lse) {
  int64_t tokens = 1;
  int64_t reached = 1;  // positions that windows are laid over
  int64_t reach[3];
  for (int a = 0; a < p.rank; ++a) {
    reach[a] = padded_length(p.length[a], p.kernel_size[a], p.dilation[a]);
    tokens *= p.length[a];
    reached *= reach[a];
  }
  const auto place = [&](int64_t token, const int64_t* lengths, int64_t (&at)[3]) {
    for (int a = p.rank - 1; a >= 0; --a) {
      at[a] = token % lengths[a];
      token /= lengths[a];
    }
  };
  // Row of tensor `part` (query, key, value) of a token.
  const auto row = [&](int part, int64_t token, int64_t head) {
    if (p.packed != 0) return static_cast<const float*>(p.query) + ((token * 3 + part) * p.heads + head) * p.head_dim;
    const void* tensors[] = {p.query, p.key, p.value};
    const int64_t heads = part == 0 ? p.heads : p.key_heads;
    return static_cast<const float*>(tensors[part]) + (token * heads + head) * (part == 2 ? p.value_dim : p.head_dim);
  };
  const double scale = p.scale != 0.0F ? p.scale : 1.0 / std::sqrt(static_cast<double>(p.head_dim));
  output.clear();
  lse.clear();
  for (int64_t query = 0; query < p.batch * tokens; ++query) {
    int64_t at[3];
    place(query % tokens, p.length, at);
    Window window[3];
    for (int a = 0; a < p.rank; ++a) {
      const int64_t size = group_length(reach[a], p.dilation[a], at[a] % p.dilation[a]);
      window[a] = group_window(at[a] / p.dilation[a], size, p.kernel_size[a], p.stride[a], p.is_causal[a] != 0);
    }
    for (int64_t head = 0; head < p.heads; ++head) {
      const int64_t key_head = head / (p.heads / p.key_heads);
      std::vector<double> scores;
      std::vector<const float*> values;
      const auto attend = [&](const float* key, const float* value, double bias) {
        const float* own = row(0, query, head);
        double sum = 0.0;
        for (int64_t c = 0; c < p.head_dim; ++c) sum += static_cast<double>(own[c]) * key[c];
        scores.push_back(sum * scale + bias);
        values.push_back(value);
      };
      for (int64_t key = 0; key < reached; ++key) {
        int64_t other[3];
        place(key, reach, other);
        bool sees = true;
        bool is_behind = false;
        int64_t token = query / tokens;
        int64_t index = head;
        for (int a = 0; a < p.rank; ++a) {
          const int64_t element = other[a] / p.dilation[a];
          sees = sees && other[a] % p.dilation[a] == at[a] % p.dilation[a] && element >= window[a].start &&
                 element < window[a].end;
          index = index * (2 * p.kernel_size[a] - 1) + element - at[a] / p.dilation[a] + p.kernel_size[a] - 1;
          is_behind = is_behind || other[a] >= p.length[a];
          token = token * p.length[a] + other[a];
        }
        if (!sees) continue;
        const double bias = p.rel_pos_bias == nullptr ? 0.0 : static_cast<const float*>(p.rel_pos_bias)[index];
        if (is_behind) {
          const float* padding = static_cast<const float*>(p.padding) + head * p.head_dim;
          attend(padding + p.heads * p.head_dim, padding + 2 * p.heads * p.head_dim, bias);
          continue;
        }
        attend(row(1, token, key_head), row(2, token, key_head), bias);
      }
      for (int64_t key = 0; key < p.additional; ++key) {
        const int64_t at_row = (query / tokens * p.additional + key) * p.key_heads + key_head;
        attend(static_cast<const float*>(p.additional_key) + at_row * p.head_dim,
               static_cast<const float*>(p.additional_value) + at_row * p.value_dim, 0.0);
      }
      const double most = *std::max_element(scores.begin(), scores.end());
      double sum = 0.0;
      for (double& score : scores) sum += score = std::exp(score - most);
      for (int64_t c = 0; c < p.value_dim; ++c) {
        double total = 0.0;
        for (size_t i = 0; i < scores.size(); ++i) total += scores[i] * values[i][c];
        output.push_back(total / sum);
      }
      lse.push_back(most + std::log(sum));
    }
  }
}

}  // namespace na_deploy::fuzz
