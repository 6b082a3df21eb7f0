// Runs the engine on random shapes as a plain program, for `make sanitize`: memory errors and undefined behaviour end it.
// It also compares products with a loop, and batches with single sequences. Exit code 0: all is well.
#include "../../bitkd/engine/encoder.cpp"

#include <cstdio>
#include <random>

static std::mt19937 random_bits(1);

static int64_t between(int64_t low, int64_t high) { return low + random_bits() % (high - low + 1); }

static std::vector<float> floats(int64_t n, float size) {
  std::normal_distribution<float> normal(0, size);
  std::vector<float> x(n);
  for (float& value : x) value = normal(random_bits);
  return x;
}

static void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", what);
  std::exit(1);
}

struct Half {
  std::vector<uint8_t> packed;
  std::vector<float> scale;
  std::vector<int> codes;
};

struct Weight {
  int64_t rows, columns;
  std::vector<Half> halves;
  std::vector<float> bias;
};

static Half make_half(int64_t rows, int64_t columns, int bits, int64_t scales) {
  Half half;
  const int per_byte = 8 / bits;
  const int64_t width = (columns + per_byte - 1) / per_byte;
  half.packed.assign(rows * width, 0);
  for (int64_t row = 0; row < rows; row++)
    for (int64_t column = 0; column < columns; column++) {
      const int digit = between(0, bits);  // 0, 1 or 0, 1, 2
      half.codes.push_back(bits == 1 ? 2 * digit - 1 : digit - 1);
      half.packed[row * width + column / per_byte] |= digit << (bits * (column % per_byte));
    }
  for (int64_t i = 0; i < scales; i++) half.scale.push_back((1 + random_bits() % 100) / 100.f);
  return half;
}

static Weight set_weight(void* encoder, int64_t layer, int part, int64_t rows, int64_t columns) {
  const int kind = between(0, 3), bits = kind == 1 ? 2 : 1;
  const int64_t scales = between(0, 1) ? rows : 1;
  Weight weight{rows, columns, {make_half(rows, columns, bits, scales)}, {}};
  if (kind > 1) weight.halves.push_back(make_half(rows, columns, 1, scales));
  if (kind == 3) weight.halves[1].scale = weight.halves[0].scale;
  if (between(0, 3)) weight.bias = floats(rows, 1);
  const Half &first = weight.halves[0], &last = weight.halves.back();
  const bool pair = kind > 1;
  expect(bitkd_set_linear(encoder, layer, part, bits, first.packed.data(), first.scale.data(), scales,
                          pair ? last.packed.data() : nullptr, pair ? last.scale.data() : nullptr,
                          weight.bias.empty() ? nullptr : weight.bias.data()) == 0,
         "a weight is refused");
  return weight;
}

// The product of one token in the order of bitkd/quant/product.py.
static void multiply(const Weight& weight, const float* x, float* y) {
  float largest = 0;
  for (int64_t k = 0; k < weight.columns; k++) largest = std::max(largest, std::fabs(x[k]));
  const float scale = std::max(largest, 1e-30f) / 127.f;
  for (int64_t n = 0; n < weight.rows; n++) {
    int sums[2] = {0, 0};
    for (size_t h = 0; h < weight.halves.size(); h++)
      for (int64_t k = 0; k < weight.columns; k++)
        sums[h] += weight.halves[h].codes[n * weight.columns + k] * static_cast<int>(std::nearbyint(x[k] / scale));
    const std::vector<float>& first = weight.halves[0].scale;
    const float a = first[first.size() == 1 ? 0 : n];
    volatile float value;  // no fused multiply-add
    if (weight.halves.size() == 1) {
      value = sums[0] * a;
    } else {
      const float b = weight.halves[1].scale[first.size() == 1 ? 0 : n];
      value = (sums[0] + sums[1]) * ((a + b) / 2);
      volatile float other = (sums[0] - sums[1]) * ((a - b) / 2);
      value = value + other;
    }
    value = value * scale;
    y[n] = weight.bias.empty() ? value : value + weight.bias[n];
  }
}

static void check_product(void* encoder, int64_t layer, int product, const std::vector<const Weight*>& parts) {
  const int64_t tokens = between(1, 60), columns = parts[0]->columns;
  int64_t outputs = 0;
  for (const Weight* part : parts) outputs += part->rows;
  std::vector<float> x = floats(tokens * columns, 1), y(tokens * outputs), expected(outputs);
  for (int64_t k = 0; k < columns; k++) x[k] = 0;
  expect(bitkd_linear(encoder, layer, product, x.data(), tokens, y.data(), between(1, 3)) == 0, "a product is refused");
  for (int64_t i = 0; i < tokens; i++) {
    int64_t begin = 0;
    for (const Weight* part : parts) {
      multiply(*part, &x[i * columns], &expected[begin]);
      begin += part->rows;
    }
    expect(std::memcmp(expected.data(), &y[i * outputs], outputs * sizeof(float)) == 0, "a product has other bits");
  }
}

static void check_forward(void* encoder, int64_t hidden) {
  std::vector<int64_t> offsets{0};
  for (int64_t i = between(1, 6); i > 0; i--) offsets.push_back(offsets.back() + between(1, between(1, 90)));
  const int64_t sequences = offsets.size() - 1;
  const std::vector<float> x = floats(offsets.back() * hidden, 1);
  std::vector<float> together = x;
  expect(bitkd_forward(encoder, together.data(), offsets.data(), sequences, between(1, 4)) == 0, "a batch is refused");
  for (int64_t i = 0; i < sequences; i++) {
    std::vector<float> alone(x.begin() + offsets[i] * hidden, x.begin() + offsets[i + 1] * hidden);
    const int64_t ends[] = {0, offsets[i + 1] - offsets[i]};
    expect(bitkd_forward(encoder, alone.data(), ends, 1, between(1, 4)) == 0, "a sequence is refused");
    for (size_t k = 0; k < alone.size(); k++)
      expect(std::fabs(alone[k] - together[offsets[i] * hidden + k]) <= 1e-5f, "a batch has other values");
  }
  std::vector<float> broken = x;  // must not be read or written elsewhere; the values are lost
  broken[between(0, broken.size() - 1)] = NAN;
  broken[between(0, broken.size() - 1)] = INFINITY;
  bitkd_forward(encoder, broken.data(), offsets.data(), sequences, 2);
}

static void check_encoder(int kernel) {
  const int64_t sizes[] = {1, 4, 5, 8, 16, 31, 32, 48, 64};
  const int64_t layers = between(1, 2), hidden = between(1, 150), heads = between(1, 4), head_size = sizes[between(0, 8)];
  const int64_t neurons = between(0, 4) ? between(1, 300) : 256, width = heads * head_size;
  void* encoder = bitkd_new(layers, hidden, heads, head_size, neurons, 1e-12f, between(0, 2), 1 / std::sqrt(head_size),
                            between(0, 1));
  expect(encoder != nullptr, "a shape is refused");
  if (bitkd_use(encoder, kernel) != 0) return bitkd_free(encoder);  // of another processor
  std::vector<std::vector<Weight>> weights(layers);
  for (int64_t i = 0; i < layers; i++) {
    for (int part = 0; part < 6; part++)
      weights[i].push_back(set_weight(encoder, i, part, part < 3 ? width : part == 4 ? neurons : hidden,
                                      part == 3 ? width : part == 5 ? neurons : hidden));
    for (int which = 0; which < 2; which++)
      bitkd_set_norm(encoder, i, which, floats(hidden, 1).data(), floats(hidden, 1).data());
  }
  expect(bitkd_finish(encoder) == 0, "weights are missing");
  for (int64_t i = 0; i < layers; i++) {
    const std::vector<Weight>& w = weights[i];
    check_product(encoder, i, 0, {&w[0], &w[1], &w[2]});
    for (int product = 1; product < 4; product++) check_product(encoder, i, product, {&w[product + 2]});
  }
  for (int i = 0; i < 3; i++) check_forward(encoder, hidden);
  bitkd_free(encoder);
}

int main(int count, char** arguments) {
  const int rounds = count > 1 ? std::atoi(arguments[1]) : 25;
  expect(bitkd_new(0, 8, 1, 8, 8, 1e-12f, 0, 1, 0) == nullptr, "no layers are taken");
  void* empty = bitkd_new(1, 8, 1, 8, 8, 1e-12f, 0, 1, 0);
  expect(bitkd_finish(empty) != 0, "an empty encoder is finished");
  bitkd_free(empty);
  for (int kernel = AUTOMATIC; kernel <= AMX; kernel++)
    for (int i = 0; i < rounds; i++) check_encoder(kernel);
  std::puts("ok");
}
