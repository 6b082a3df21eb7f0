// How fast the engine's products are, beside the peaks of this processor: lines of "name GMAC/s", one thread.
#include "../../bitkd/engine/encoder.cpp"

#include <time.h>

#include <cstdio>

namespace {

double now() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

// The shortest of a few times, in seconds.
template <class F>
double seconds(F&& work, int repeats = 30) {
  double shortest = 1e30;
  for (int i = 0; i < repeats; i++) {
    const double begin = now();
    work();
    shortest = std::min(shortest, now() - begin);
  }
  return shortest;
}

constexpr int LOOPS = 200000, SUMS = 10;

void peaks() {
  V x = set1(0.5f), s[SUMS];
  for (V& v : s) v = set1(1.f);
  const double fma_seconds = seconds([&] {
    V a = s[0], b = s[1], c = s[2], d = s[3], e = s[4], f = s[5], g = s[6], h = s[7], i = s[8], j = s[9];
    for (int n = 0; n < LOOPS; n++) {
      a = fma(a, x, x), b = fma(b, x, x), c = fma(c, x, x), d = fma(d, x, x), e = fma(e, x, x);
      f = fma(f, x, x), g = fma(g, x, x), h = fma(h, x, x), i = fma(i, x, x), j = fma(j, x, x);
      asm volatile("" : "+x"(x));
    }
    s[0] = a + b + c + d + e + f + g + h + i + j;
  });
  volatile float used = sum_of(s[0]);
  (void)used;
  std::printf("peak FP32 %.1f\n", 1e-9 * LOOPS * SUMS * W / fma_seconds);
#ifdef HAS_VNNI
  I w = set1i(0x01010101), z = set1i(0);
  const double dot_seconds = seconds([&] {
    I a = z, b = z, c = z, d = z, e = z, f = z, g = z, h = z, i = z, j = z;
    for (int n = 0; n < LOOPS; n++) {
      a = dot4(a, w, w), b = dot4(b, w, w), c = dot4(c, w, w), d = dot4(d, w, w), e = dot4(e, w, w);
      f = dot4(f, w, w), g = dot4(g, w, w), h = dot4(h, w, w), i = dot4(i, w, w), j = dot4(j, w, w);
      asm volatile("" : "+v"(w));
    }
    z = addi(addi(addi(a, b), addi(c, d)), addi(addi(e, f), addi(addi(g, h), addi(i, j))));
    asm volatile("" : "+v"(z));
  });
  std::printf("peak VNNI %.1f\n", 1e-9 * LOOPS * SUMS * 64 / dot_seconds);
#endif
}

void products(int64_t outputs, int64_t columns) {
  const Tiles tiles;
  for (const int kernel : {TABLE16, VNNI, TABLE64, AMX}) {
    if (!is_available(kernel)) continue;
    // The product "up" of a layer of this size.
    Encoder* e = static_cast<Encoder*>(bitkd_new(1, columns, 1, 64, outputs, 1e-12f, GELU, 0.125f, 0));
    bitkd_use(e, kernel);
    std::vector<uint8_t> bits(outputs * ((columns + 7) / 8));
    for (size_t i = 0; i < bits.size(); i++) bits[i] = static_cast<uint8_t>(i * 2654435761u >> 13);
    const float scale = 0.1f;
    if (bitkd_set_linear(e, 0, 4, 1, bits.data(), &scale, 1, nullptr, nullptr, nullptr)) continue;
    Scratch s(*e, 1);
    for (int64_t i = 0; i < TILE; i++)
      for (int64_t k = 0; k < columns; k++) s.x.q[i * s.x.stride + k] = static_cast<int8_t>((31 * k + 17 * i) % 255 - 127);
    const auto& parts = e->layers[0].products[2];
    const int loops = static_cast<int>(std::max<int64_t>(1, (int64_t(1) << 26) / (outputs * columns)));
    const double taken = seconds([&] {
      for (int i = 0; i < loops; i++) multiply(parts, TILE, s.x, s.h, s.inner, s);
    });
    std::printf("%s %ldx%ld %.1f\n", KERNEL_NAMES[kernel], static_cast<long>(outputs), static_cast<long>(columns),
                1e-9 * loops * TILE * outputs * columns / taken);
    bitkd_free(e);
  }
}

}  // namespace

int main() {
  peaks();
  products(3072, 768);
  products(2304, 768);
  products(768, 3072);
  products(768, 768);
  products(1536, 384);
  products(384, 1536);
}
