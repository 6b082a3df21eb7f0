// The encoder of a packed student in one call, for x86 processors with AVX2 or more.
//
// Weights have 1 bit, or 2 (ternary codes, or the two halves of a split weight); activations are quantized to 8 bits, one
// scale per token. A weight is kept as one or two planes of bits b in {0, 1}. With a the codes of a token and S = sum(b * a),
//   binary   sum(w * a) = 2 S - sum(a)
//   ternary  sum(w * a) = S1 + S2 - sum(a)
// so every product is a sum of whole numbers, exact in any order, and is scaled afterwards in the order of
// bitkd/quant/product.py: the results are those of the simulation, bit for bit. GELU, LayerNorm, softmax and the sums of
// attention are rounded differently from torch.
//
// Four kernels compute S. All give the same sums, so each product takes the one that was fastest when it was tried:
//   TABLE64  6 bits of a weight index a table of the 64 partial sums of 6 codes (vpermb, AVX512-VBMI); passes the peak of
//            int8 dot products
//   VNNI     bits are spread to bytes in registers (AVX512-VNNI)
//   AMX      bits are spread to tiles of bytes (AMX-INT8)
//   TABLE16  4 bits index a table of 16 partial sums (vpshufb, AVX2)
//
// The unit of work is a sequence; where there are fewer sequences than threads, the rows of each are shared. Everything is
// computed in tiles of TILE tokens that stay in the cache.
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <tuple>
#include <vector>
#ifndef BITKD_INTRINSICS  // an emulation of missing instructions, for tests
#include <immintrin.h>
#endif

#if !(defined(__AVX2__) && defined(__FMA__))
#error "the engine needs a processor with AVX2 and FMA"
#endif
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define HAS_AVX512 1
#endif
#if defined(HAS_AVX512) && defined(__AVX512VNNI__)
#define HAS_VNNI 1
#endif
#if defined(HAS_AVX512) && defined(__AVX512VBMI__)
#define HAS_VBMI 1
#endif
#if defined(HAS_VNNI) && defined(__AMX_INT8__) && defined(__AMX_TILE__) && defined(__linux__)
#define HAS_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif
#define UNROLL _Pragma("GCC unroll 16")
#define INLINE inline __attribute__((always_inline))

namespace {

#ifdef HAS_AVX512
constexpr int64_t TILE = 32;  // tokens; two tiles of AMX
#else
constexpr int64_t TILE = 24;
#endif
constexpr int64_t SPREAD = 8;  // pairs of tiles of weights that are spread at once
constexpr int64_t MOST_TOKENS = 8, TABLES = 20480;  // of which tables are built at once, and their bytes
constexpr float TINY = 1e-30f;  // bitkd.quant.functional.token_codes
constexpr float LARGEST = 127.f;

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// ---- Vectors of floats: 16 with AVX512, 8 with AVX2 ----------------------------------------------------------------------

#ifdef HAS_AVX512
using V = __m512;
using I = __m512i;
constexpr int W = 16;
constexpr int ROWS = 12;  // rows of a register tile: 12 x 2 sums and 3 operands fit into 32 registers
INLINE V set1(float x) { return _mm512_set1_ps(x); }
INLINE V load(const float* p) { return _mm512_loadu_ps(p); }
INLINE void store(float* p, V v) { _mm512_storeu_ps(p, v); }
INLINE V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
INLINE V larger(V a, V b) { return _mm512_max_ps(a, b); }
INLINE V smaller(V a, V b) { return _mm512_min_ps(a, b); }
INLINE V nearest(V a) { return _mm512_roundscale_ps(a, 8); }  // ties to even
INLINE V magnitude(V a) { return _mm512_abs_ps(a); }
INLINE V with_sign_of(V a, V s) { return _mm512_or_ps(a, _mm512_and_ps(s, set1(-0.f))); }  // a >= 0
INLINE V load_some(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p); }
INLINE void store_some(float* p, V v, int64_t n) { _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), v); }
INLINE V keep_some(V v, int64_t n, V other) { return _mm512_mask_mov_ps(other, __mmask16((1u << n) - 1), v); }
INLINE bool any_larger(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0; }
INLINE V reciprocal(V a) {
  V r = _mm512_rcp14_ps(a);
  return r * (set1(2.f) - a * r);
}
INLINE V power_of_two(V p, V n) { return _mm512_scalef_ps(p, n); }
INLINE I whole(V a) { return _mm512_cvtps_epi32(a); }
INLINE V real(I a) { return _mm512_cvtepi32_ps(a); }
INLINE I set1i(int32_t x) { return _mm512_set1_epi32(x); }
INLINE I loadi(const int32_t* p) { return _mm512_loadu_si512(p); }
INLINE I addi(I a, I b) { return _mm512_add_epi32(a, b); }
INLINE I subi(I a, I b) { return _mm512_sub_epi32(a, b); }
INLINE void store_bytes(int8_t* p, I v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v)); }
INLINE void storei(int32_t* p, I v) { _mm512_storeu_si512(p, v); }
#else
using V = __m256;
using I = __m256i;
constexpr int W = 8;
constexpr int ROWS = 6;  // 6 x 2 sums and 3 operands fit into 16 registers
INLINE V set1(float x) { return _mm256_set1_ps(x); }
INLINE V load(const float* p) { return _mm256_loadu_ps(p); }
INLINE void store(float* p, V v) { _mm256_storeu_ps(p, v); }
INLINE V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
INLINE V larger(V a, V b) { return _mm256_max_ps(a, b); }
INLINE V smaller(V a, V b) { return _mm256_min_ps(a, b); }
INLINE V nearest(V a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }  // ties to even
INLINE V magnitude(V a) { return _mm256_andnot_ps(set1(-0.f), a); }
INLINE V with_sign_of(V a, V s) { return _mm256_or_ps(a, _mm256_and_ps(s, set1(-0.f))); }  // a >= 0
INLINE __m256i first(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
INLINE V load_some(const float* p, int64_t n) { return _mm256_maskload_ps(p, first(n)); }
INLINE void store_some(float* p, V v, int64_t n) { _mm256_maskstore_ps(p, first(n), v); }
INLINE V keep_some(V v, int64_t n, V other) { return _mm256_blendv_ps(other, v, _mm256_castsi256_ps(first(n))); }
INLINE bool any_larger(V a, V b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0; }
INLINE V reciprocal(V a) {
  V r = _mm256_rcp_ps(a);
  return r * (set1(2.f) - a * r);
}
INLINE V power_of_two(V p, V n) {
  const I exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
}
INLINE I whole(V a) { return _mm256_cvtps_epi32(a); }
INLINE V real(I a) { return _mm256_cvtepi32_ps(a); }
INLINE I set1i(int32_t x) { return _mm256_set1_epi32(x); }
INLINE I loadi(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
INLINE I addi(I a, I b) { return _mm256_add_epi32(a, b); }
INLINE I subi(I a, I b) { return _mm256_sub_epi32(a, b); }
INLINE void store_bytes(int8_t* p, I v) {
  const I words = _mm256_packs_epi32(v, v);
  const __m128i pair = _mm_unpacklo_epi64(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(pair, pair));
}
INLINE void storei(int32_t* p, I v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
#endif

INLINE float sum_of(V v) {
  alignas(64) float x[W];
  store(x, v);
  UNROLL for (int half = W / 2; half > 0; half /= 2)
    UNROLL for (int i = 0; i < half; i++) x[i] += x[i + half];
  return x[0];
}

INLINE float largest_of(V v) {
  alignas(64) float x[W];
  store(x, v);
  UNROLL for (int half = W / 2; half > 0; half /= 2)
    UNROLL for (int i = 0; i < half; i++) x[i] = std::max(x[i], x[i + half]);
  return x[0];
}

INLINE int32_t sum_of(I v) {
  alignas(64) int32_t x[W];
  storei(x, v);
  uint32_t total = 0;  // wraps: the codes of a NaN are no codes
  UNROLL for (int i = 0; i < W; i++) total += static_cast<uint32_t>(x[i]);
  return static_cast<int32_t>(total);
}

// The first n of a vector, others zero; n >= W gives all.
INLINE V load_part(const float* p, int64_t n) { return n >= W ? load(p) : load_some(p, n); }
INLINE void store_part(float* p, V v, int64_t n) {
  if (n >= W) store(p, v);
  else store_some(p, v, n);
}

// e^x for x <= 0, to 1-2 units in the last place (the coefficients are those of Cephes' expf).
INLINE V exponential(V x) {
  x = larger(x, set1(-87.3f));
  const V n = nearest(x * set1(1.44269504088896341f));
  V r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  V p = fma(set1(1.9875691500e-4f), r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(p, r * r, r + set1(1.f));
  return power_of_two(p, n);
}

// erf to 4e-7, relative: z p(z^2) / q(z^2), fitted for the smallest largest error on |z| <= 3.85, where erf is 1 - 5e-8.
INLINE V error_function(V z) {
  z = larger(smaller(z, set1(3.85f)), set1(-3.85f));
  const V u = z * z;
  V p = fma(set1(2.0905895e-6f), u, set1(2.8759585e-4f));
  V q = fma(set1(3.8651207e-5f), u, set1(1.1669262e-3f));
  p = fma(p, u, set1(3.7623048e-3f));
  q = fma(q, u, set1(1.4959932e-2f));
  p = fma(p, u, set1(5.2747015e-2f));
  q = fma(q, u, set1(1.1397931e-1f));
  p = fma(p, u, set1(1.899669e-1f));
  q = fma(q, u, set1(5.016858e-1f));
  p = fma(p, u, set1(1.1283791f));
  q = fma(q, u, set1(1.f));
  return z * p * reciprocal(q);
}

enum Activation { GELU = 0, RELU = 1, GELU_TANH = 2, NO_ACTIVATION = 3 };

template <int A>
INLINE V activate(V x) {
  if (A == RELU) return larger(x, set1(0.f));
  if (A == GELU) return x * set1(0.5f) * (set1(1.f) + error_function(x * set1(0.70710678118654752f)));
  if (A == GELU_TANH) {  // 0.5 x (1 + tanh u) = x / (1 + e^-2u)
    const V u = set1(0.79788456080286536f) * fma(set1(0.044715f) * x * x, x, x), a = magnitude(u);
    const V e = exponential(set1(-2.f) * a);
    const V tanh = with_sign_of((set1(1.f) - e) / (set1(1.f) + e), u);
    return x * set1(0.5f) * (set1(1.f) + tanh);
  }
  return x;
}

// ---- Memory --------------------------------------------------------------------------------------------------------------

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// Zeros, aligned to a cache line; a line more than asked for may be read.
template <class T>
struct Buffer {
  std::unique_ptr<T[], Free> data;
  Buffer() = default;
  explicit Buffer(int64_t n) {
    const size_t bytes = round_up(n * static_cast<int64_t>(sizeof(T)), 64) + 64;
    data.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
    if (!data) throw std::bad_alloc();
    std::memset(data.get(), 0, bytes);
  }
  operator T*() const { return data.get(); }
  explicit operator bool() const { return static_cast<bool>(data); }
};

// ---- Activations to codes ------------------------------------------------------------------------------------------------

// Codes of a tile of tokens, with their scales and sums. Rows are filled up with zeros.
struct Codes {
  Buffer<int8_t> q;
  int64_t stride = 0;
  Buffer<float> scale;
  Buffer<int32_t> sum;
  Codes() = default;
  explicit Codes(int64_t width)
      : q(TILE * (round_up(width, 64) + 64)), stride(round_up(width, 64) + 64), scale(TILE), sum(TILE) {}
};

// round(x / scale), ties to even, as a correctly rounded division would give it.
INLINE V code_of(V x, V scale, V inverse) {
  const V quotient = x * inverse, code = nearest(quotient);
  // The product differs from the quotient by a few units in the last place: it matters only close to a tie.
  if (any_larger(magnitude(quotient - code), set1(0.4999f))) return nearest(x / scale);
  return code;
}

INLINE void codes_of_row(const float* x, int64_t n, float largest, int8_t* q, float* scale, int32_t* sum) {
  const float s = std::max(largest, TINY) / LARGEST;
  const V sv = set1(s), inverse = set1(1.f / s);
  I total = set1i(0);
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    const I c = whole(code_of(load(x + i), sv, inverse));
    total = addi(total, c);
    store_bytes(q + i, c);
  }
  if (i < n) {
    const I c = whole(code_of(load_some(x + i, n - i), sv, inverse));
    total = addi(total, c);
    store_bytes(q + i, c);  // behind the row's end there is room, and these are zeros
  }
  *scale = s;
  *sum = sum_of(total);
}

// Activation function in place, then codes of the row.
template <int A>
void quantize_row(float* x, int64_t n, int8_t* q, float* scale, int32_t* sum) {
  V m = set1(0.f);
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    V v = load(x + i);
    if (A != NO_ACTIVATION) store(x + i, v = activate<A>(v));
    m = larger(m, magnitude(v));
  }
  if (i < n) {
    V v = load_some(x + i, n - i);
    if (A != NO_ACTIVATION) store_some(x + i, v = activate<A>(v), n - i);
    m = larger(m, magnitude(v));
  }
  codes_of_row(x, n, largest_of(m), q, scale, sum);
}

// Codes of the row times the scales of the columns; `product` takes the row's product.
void quantize_scaled_row(const float* x, const float* column, int64_t n, float* product, int8_t* q, float* scale, int32_t* sum) {
  V m = set1(0.f);
  for (int64_t i = 0; i < n; i += W) {
    const V v = load_part(x + i, n - i) * load_part(column + i, n - i);
    store_part(product + i, v, n - i);
    m = larger(m, magnitude(v));
  }
  codes_of_row(product, n, largest_of(m), q, scale, sum);
}

template <int A>
void activate_rows(float* x, int64_t stride, int64_t rows, int64_t n) {
  if (A == NO_ACTIVATION) return;
  for (int64_t t = 0; t < rows; t++)
    for (int64_t i = 0; i < n; i += W) {
      float* part = x + t * stride + i;
      store_part(part, activate<A>(load_part(part, n - i)), n - i);
    }
}

template <int A>
void quantize_rows(float* x, int64_t stride, int64_t rows, int64_t n, const Codes& to) {
  for (int64_t i = 0; i < rows; i++) quantize_row<A>(x + i * stride, n, to.q + i * to.stride, to.scale + i, to.sum + i);
}

// codes * scale in place of the row.
void quantize_dequantize(float* x, int64_t n) {
  V m = set1(0.f);
  for (int64_t i = 0; i < n; i += W) m = larger(m, magnitude(load_part(x + i, n - i)));
  const float s = std::max(largest_of(m), TINY) / LARGEST;
  const V sv = set1(s), inverse = set1(1.f / s);
  for (int64_t i = 0; i < n; i += W) store_part(x + i, code_of(load_part(x + i, n - i), sv, inverse) * sv, n - i);
}

// ---- Products ------------------------------------------------------------------------------------------------------------

enum Kernel { AUTOMATIC = 0, TABLE16 = 1, VNNI = 2, TABLE64 = 3, AMX = 4 };
const char* const KERNEL_NAMES[] = {"", "TABLE16", "VNNI", "TABLE64", "AMX"};

#ifdef HAS_AMX
// Linux lets a process use tiles when it has asked for them.
bool may_use_tiles() {
#ifdef BITKD_INTRINSICS
  return true;
#else
  constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
  static const bool granted = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
  return granted;
#endif
}
#endif

bool is_available(int32_t kernel) {
  switch (kernel) {
    case AUTOMATIC: case TABLE16: return true;
#ifdef HAS_VNNI
    case VNNI: return true;
#endif
#ifdef HAS_VBMI
    case TABLE64: return true;
#endif
#ifdef HAS_AMX
    case AMX: return may_use_tiles();
#endif
    default: return false;
  }
}

// How the sums of the planes make up the product.
enum Form {
  BINARY,  // 2 S - sum
  TERNARY,  // S1 + S2 - sum
  PAIR,  // 2 (S1 + S2) - 2 sum: both halves of a split weight, of equal scales
  UNEQUAL  // two products: 2 (S1 + S2) - 2 sum, and 2 (S1 - S2)
};

struct Linear {
  int64_t rows = 0, columns = 0;
  Form form = BINARY;
  Kernel kernel = AUTOMATIC;
  std::vector<uint8_t> bits[2];  // planes as on disk, row by row; until they are laid out for the kernel
  Buffer<uint8_t> weights[2];  // as the kernel reads them
  Buffer<float> scale, second_scale, bias;  // of each row
  Buffer<float> column;  // what each input is multiplied by before its codes; empty: nothing
  int planes() const { return form == BINARY ? 1 : 2; }
  const uint64_t* words(int plane) const {
    return reinterpret_cast<const uint64_t*>(static_cast<uint8_t*>(weights[plane]));
  }
};

// Linears whose outputs lie side by side.
struct Parts {
  const Linear *first, *last;
  Parts(const std::vector<Linear>& all) : first(all.data()), last(all.data() + all.size()) {}
  explicit Parts(const Linear& one) : first(&one), last(&one + 1) {}
  const Linear* begin() const { return first; }
  const Linear* end() const { return last; }
  const Linear& operator[](int64_t i) const { return first[i]; }
};

// Sums of planes to the scaled product, in the order of bitkd/quant/product.py.
template <int F>
INLINE V scaled(I s1, I s2, I sum, V scale, V second_scale, V x_scale, V bias) {
  V y;
  if (F == BINARY) y = real(subi(addi(s1, s1), sum)) * scale;
  if (F == TERNARY) y = real(subi(addi(s1, s2), sum)) * scale;
  if (F == PAIR || F == UNEQUAL) {
    const I both = subi(addi(s1, s2), sum);
    y = real(addi(both, both)) * scale;
  }
  if (F == UNEQUAL) {
    const I difference = subi(s1, s2);
    y = y + real(addi(difference, difference)) * second_scale;
  }
  return y * x_scale + bias;
}

// -- Tables of partial sums. A table has the low 5 bits and the rest of (sum + OFFSET), a byte each, for every combination of
// BITS weights; SHARED groups' indices share a byte. Bytes of ADDED groups are added up before they are widened to 16 bits,
// and those of CHUNK groups before 32 bits. Tables of TOKENS tokens fit into the first-level cache.

// GCC reorders sums that it knows; then they do not fit into registers.
INLINE __m256i add_bytes(__m256i a, __m256i b) {
  asm("vpaddb %1, %0, %0" : "+x"(a) : "x"(b));
  return a;
}
#ifdef HAS_VBMI
INLINE __m512i add_bytes(__m512i a, __m512i b) {
#ifdef BITKD_INTRINSICS
  return _mm512_add_epi8(a, b);
#else
  asm("vpaddb %1, %0, %0" : "+v"(a) : "v"(b));
  return a;
#endif
}
#endif

struct Table16 {
  using B = __m256i;
  static constexpr int BYTES = 32, BITS = 4, OFFSET = 512, ADDED = 8, CHUNK = 64, BLOCKS = 2, STEP = 32, SHARED = 2, TOKENS = 8;
  static INLINE B zero() { return _mm256_setzero_si256(); }
  // The 4-bit indices of a group; those of two groups share a byte.
  static INLINE B index(const uint8_t* weights, int64_t group, int shared, int64_t blocks, int64_t block) {
    const B both = _mm256_load_si256(reinterpret_cast<const B*>(weights + (group / 2 * blocks + block) * BYTES));
    return _mm256_and_si256(shared ? _mm256_srli_epi16(both, 4) : both, _mm256_set1_epi8(15));
  }
  static INLINE B low(const uint8_t* table) {
    return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table)));
  }
  static INLINE B high(const uint8_t* table) { return low(table + 16); }
  static INLINE B add8(B a, B b) { return add_bytes(a, b); }
  static INLINE B add16(B a, B b) { return _mm256_add_epi16(a, b); }
  static INLINE B add32(B a, B b) { return _mm256_add_epi32(a, b); }
  static INLINE B look_up(B table, B index) { return _mm256_shuffle_epi8(table, index); }
  // Bytes (low, high) to low + 32 * high, of the first and the second half of each 128-bit lane.
  static INLINE B widen_first(B low, B high) {
    return _mm256_maddubs_epi16(_mm256_unpacklo_epi8(low, high), _mm256_set1_epi16(0x2001));
  }
  static INLINE B widen_second(B low, B high) {
    return _mm256_maddubs_epi16(_mm256_unpackhi_epi8(low, high), _mm256_set1_epi16(0x2001));
  }
  static INLINE B first32(B a) { return _mm256_unpacklo_epi16(a, zero()); }
  static INLINE B second32(B a) { return _mm256_unpackhi_epi16(a, zero()); }
  static INLINE void accumulate(int32_t* to, B v) {
    B* p = reinterpret_cast<B*>(to);
    _mm256_store_si256(p, add32(_mm256_load_si256(p), v));
  }
  static void build(const int8_t* codes, int64_t groups, uint8_t* tables) {
    alignas(32) uint8_t pairs[2][32];  // which codes each entry adds: bits 0 and 1, bits 2 and 3
    for (int entry = 0; entry < 16; entry++)
      for (int bit = 0; bit < 4; bit++) pairs[bit / 2][2 * entry + bit % 2] = entry >> bit & 1;
    const B first = _mm256_load_si256(reinterpret_cast<const B*>(pairs[0]));
    const B second = _mm256_load_si256(reinterpret_cast<const B*>(pairs[1]));
    const B offset = _mm256_set1_epi16(OFFSET), mask = _mm256_set1_epi16(31);
    for (int64_t g = 0; g < groups; g++) {
      int16_t c[2];
      std::memcpy(c, codes + 4 * g, 4);
      B sums = _mm256_maddubs_epi16(first, _mm256_set1_epi16(c[0]));
      sums = add16(add16(sums, _mm256_maddubs_epi16(second, _mm256_set1_epi16(c[1]))), offset);
      const B bytes = _mm256_packus_epi16(_mm256_and_si256(sums, mask), _mm256_srli_epi16(sums, 5));
      _mm256_store_si256(reinterpret_cast<B*>(tables + g * STEP), _mm256_permute4x64_epi64(bytes, 0xD8));
    }
  }
};

#ifdef HAS_VBMI
struct Table64 {
  using B = __m512i;
  static constexpr int BYTES = 64, BITS = 6, OFFSET = 768, ADDED = 5, CHUNK = 40, BLOCKS = 4, STEP = 128, SHARED = 1, TOKENS = 4;
  static INLINE B zero() { return _mm512_setzero_si512(); }
  static INLINE B index(const uint8_t* weights, int64_t group, int, int64_t blocks, int64_t block) {
    return _mm512_load_si512(weights + (group * blocks + block) * BYTES);
  }
  static INLINE B low(const uint8_t* table) { return _mm512_load_si512(table); }
  static INLINE B high(const uint8_t* table) { return _mm512_load_si512(table + 64); }
  static INLINE B add8(B a, B b) { return add_bytes(a, b); }
  static INLINE B add16(B a, B b) { return _mm512_add_epi16(a, b); }
  static INLINE B add32(B a, B b) { return _mm512_add_epi32(a, b); }
  static INLINE B look_up(B table, B index) { return _mm512_permutexvar_epi8(index, table); }
  static INLINE B widen_first(B low, B high) {
    return _mm512_maddubs_epi16(_mm512_unpacklo_epi8(low, high), _mm512_set1_epi16(0x2001));
  }
  static INLINE B widen_second(B low, B high) {
    return _mm512_maddubs_epi16(_mm512_unpackhi_epi8(low, high), _mm512_set1_epi16(0x2001));
  }
  static INLINE B first32(B a) { return _mm512_unpacklo_epi16(a, zero()); }
  static INLINE B second32(B a) { return _mm512_unpackhi_epi16(a, zero()); }
  static INLINE void accumulate(int32_t* to, B v) { _mm512_store_si512(to, add32(_mm512_load_si512(to), v)); }
  static void build(const int8_t* codes, int64_t groups, uint8_t* tables) {
    alignas(64) uint8_t pairs[3][64], even[64];  // entries 0 to 31: the sixth code is added to make 32 to 63
    for (int entry = 0; entry < 32; entry++)
      for (int bit = 0; bit < 6; bit++) pairs[bit / 2][2 * entry + bit % 2] = entry >> bit & 1;
    for (int i = 0; i < 64; i++) even[i] = static_cast<uint8_t>(2 * i);
    const B first = _mm512_load_si512(pairs[0]), second = _mm512_load_si512(pairs[1]), third = _mm512_load_si512(pairs[2]);
    const B evens = _mm512_load_si512(even), offset = _mm512_set1_epi16(OFFSET), mask = _mm512_set1_epi16(31);
    for (int64_t g = 0; g < groups; g++) {
      int16_t c[3];
      std::memcpy(c, codes + 6 * g, 6);
      B v = add16(offset, _mm512_maddubs_epi16(first, _mm512_set1_epi16(c[0])));
      v = add16(v, _mm512_maddubs_epi16(second, _mm512_set1_epi16(c[1])));
      v = add16(v, _mm512_maddubs_epi16(third, _mm512_set1_epi16(c[2])));
      const B w = add16(v, _mm512_set1_epi16(static_cast<int16_t>(c[2] >> 8)));
      const B low = _mm512_permutex2var_epi8(_mm512_and_si512(v, mask), evens, _mm512_and_si512(w, mask));
      const B high = _mm512_permutex2var_epi8(_mm512_srli_epi16(v, 5), evens, _mm512_srli_epi16(w, 5));
      _mm512_store_si512(tables + g * STEP, low);
      _mm512_store_si512(tables + g * STEP + 64, high);
    }
  }
};
#endif

template <class T>
int64_t table_groups(int64_t columns) {
  return round_up((columns + T::BITS - 1) / T::BITS, T::ADDED);
}

// Adds the sums of `groups` groups, at most CHUNK, to c: two tokens, `stride` apart, BLOCKS blocks of BYTES outputs.
template <class T, int BLOCKS>
INLINE void add_chunk(const uint8_t* weights, const uint8_t* tables, int64_t groups, int32_t* c, int64_t stride) {
  using B = typename T::B;
  constexpr int TOKENS = 2, PER_TOKEN = T::CHUNK * T::STEP;
  B wide[TOKENS][BLOCKS][2];
  UNROLL for (int t = 0; t < TOKENS; t++)
    UNROLL for (int b = 0; b < BLOCKS; b++) wide[t][b][0] = wide[t][b][1] = T::zero();
  for (int64_t g = 0; g < groups; g += T::ADDED) {
    B low[TOKENS][BLOCKS], high[TOKENS][BLOCKS];
    UNROLL for (int t = 0; t < TOKENS; t++)
      UNROLL for (int b = 0; b < BLOCKS; b++) low[t][b] = high[t][b] = T::zero();
    for (int j = 0; j < T::ADDED; j += T::SHARED)  // unrolled in full, the sums would not fit into registers
      UNROLL for (int shared = 0; shared < T::SHARED; shared++) {
        B index[BLOCKS];
        UNROLL for (int b = 0; b < BLOCKS; b++) index[b] = T::index(weights, g + j, shared, BLOCKS, b);
        UNROLL for (int t = 0; t < TOKENS; t++) {
          const uint8_t* table = tables + t * PER_TOKEN + (g + j + shared) * T::STEP;
          const B l = T::low(table), h = T::high(table);
          UNROLL for (int b = 0; b < BLOCKS; b++) {
            low[t][b] = T::add8(low[t][b], T::look_up(l, index[b]));
            high[t][b] = T::add8(high[t][b], T::look_up(h, index[b]));
          }
        }
      }
    UNROLL for (int t = 0; t < TOKENS; t++)
      UNROLL for (int b = 0; b < BLOCKS; b++) {
        wide[t][b][0] = T::add16(wide[t][b][0], T::widen_first(low[t][b], high[t][b]));
        wide[t][b][1] = T::add16(wide[t][b][1], T::widen_second(low[t][b], high[t][b]));
      }
  }
  UNROLL for (int t = 0; t < TOKENS; t++)
    UNROLL for (int b = 0; b < BLOCKS; b++)
      UNROLL for (int half = 0; half < 2; half++) {
        int32_t* to = c + t * stride + b * T::BYTES + half * T::BYTES / 2;
        T::accumulate(to, T::first32(wide[t][b][half]));
        T::accumulate(to + T::BYTES / 4, T::second32(wide[t][b][half]));
      }
}

// The byte of a block that holds an output, so that the sums come out in order after being widened twice.
template <class T>
int64_t place_in_block(int64_t output) {
  constexpr int64_t LANE = T::BYTES / 4;  // int32 that two widenings of one half of a lane's bytes give, over all lanes
  const int64_t half = output / (2 * LANE), quarter = output % (2 * LANE) / LANE, lane = output % LANE / 4;
  return lane * 16 + half * 8 + quarter * 4 + output % 4;
}

// How many blocks are computed at once, of those that are left.
template <class T>
int64_t blocks_at_once(int64_t left) {
  return left >= T::BLOCKS ? T::BLOCKS : left >= 2 ? 2 : 1;
}

template <class T>
Buffer<uint8_t> lay_out_for_tables(const std::vector<uint8_t>& bits, int64_t rows, int64_t columns) {
  const int64_t groups = table_groups<T>(columns), blocks = round_up(rows, T::BYTES) / T::BYTES, stride = (columns + 7) / 8;
  Buffer<uint8_t> weights(blocks * groups / T::SHARED * T::BYTES);
  uint8_t* to = weights;
  for (int64_t block = 0; block < blocks;) {
    const int64_t count = blocks_at_once<T>(blocks - block);
    for (int64_t b = 0; b < count; b++)
      for (int64_t output = 0; output < T::BYTES && (block + b) * T::BYTES + output < rows; output++) {
        const uint8_t* row = bits.data() + ((block + b) * T::BYTES + output) * stride;
        uint8_t* column = to + b * T::BYTES + place_in_block<T>(output);
        for (int64_t k = 0; k < columns; k++) {
          const int64_t group = k / T::BITS;
          const int bit = row[k / 8] >> (k % 8) & 1;
          column[group / T::SHARED * count * T::BYTES] |=
              static_cast<uint8_t>(bit << (k % T::BITS + (group % T::SHARED) * T::BITS));
        }
      }
    to += count * groups / T::SHARED * T::BYTES;
    block += count;
  }
  return weights;
}

// -- Dot products of bytes: panels of 32 outputs, 4 codes at a time.

constexpr int64_t PANEL = 32;

#ifdef HAS_VNNI
INLINE I dot4(I sum, I weights, I codes) {
#ifdef BITKD_INTRINSICS
  return _mm512_dpbusd_epi32(sum, weights, codes);
#else
  // GCC 12 copies and spills the sums around the intrinsic.
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(codes));
  return sum;
#endif
}

Buffer<uint8_t> lay_out_for_dots(const std::vector<uint8_t>& bits, int64_t rows, int64_t columns) {
  const int64_t panels = round_up(rows, PANEL) / PANEL, quads = (columns + 3) / 4, stride = (columns + 7) / 8;
  Buffer<uint8_t> weights(panels * quads * 16);
  for (int64_t n = 0; n < rows; n++)
    for (int64_t k = 0; k < columns; k++) {
      const int bit = bits[n * stride + k / 8] >> (k % 8) & 1;
      const int64_t place = ((n / PANEL * quads + k / 4) * 2 + n % PANEL / 16) * 64 + 4 * (n % 16) + k % 4;
      weights[place / 8] |= static_cast<uint8_t>(bit << (place % 8));
    }
  return weights;
}

template <int R, int F>
INLINE void dot_rows(const Linear& l, int64_t panel, const int8_t* q, int64_t stride, const float* x_scale,
                     const int32_t* sum, float* y, int64_t to) {
  constexpr int SUMS = F == UNEQUAL ? 2 : 1;
  I s[SUMS][R][2];
  UNROLL for (int p = 0; p < SUMS; p++)
    UNROLL for (int r = 0; r < R; r++) s[p][r][0] = s[p][r][1] = set1i(0);
  const int64_t quads = (l.columns + 3) / 4;
  const uint64_t* bits = l.words(0) + panel * quads * 2;
  const uint64_t* more = F == BINARY ? nullptr : l.words(1) + panel * quads * 2;
  const I one = _mm512_set1_epi8(1);
  for (int64_t k = 0; k < quads; k++) {
    I w[SUMS][2];
    UNROLL for (int v = 0; v < 2; v++) {
      w[0][v] = _mm512_maskz_mov_epi8(bits[2 * k + v], one);
      if (F == TERNARY || F == PAIR) w[0][v] = _mm512_mask_add_epi8(w[0][v], more[2 * k + v], w[0][v], one);
      if (F == UNEQUAL) w[SUMS - 1][v] = _mm512_maskz_mov_epi8(more[2 * k + v], one);
    }
    UNROLL for (int r = 0; r < R; r++) {
      int32_t four;
      std::memcpy(&four, q + r * stride + 4 * k, 4);
      const I codes = set1i(four);
      UNROLL for (int p = 0; p < SUMS; p++)
        UNROLL for (int v = 0; v < 2; v++) s[p][r][v] = dot4(s[p][r][v], w[p][v], codes);
    }
  }
  UNROLL for (int v = 0; v < 2; v++) {
    const int64_t n = panel * PANEL + 16 * v;
    const V scale = load(l.scale + n), second = F == UNEQUAL ? load(l.second_scale + n) : scale, bias = load(l.bias + n);
    UNROLL for (int r = 0; r < R; r++) {
      const I s1 = s[0][r][v], s2 = F == UNEQUAL ? s[SUMS - 1][r][v] : set1i(0);
      store(y + r * to + n, scaled<F>(s1, s2, set1i(sum[r]), scale, second, set1(x_scale[r]), bias));
    }
  }
}

template <int F>
void multiply_by_dots(const Linear& l, int64_t tokens, const Codes& x, float* y, int64_t to) {
  constexpr int MOST = F == UNEQUAL ? ROWS / 2 : ROWS;
  const int64_t panels = round_up(l.rows, PANEL) / PANEL;
  for (int64_t panel = 0; panel < panels; panel++) {
    int64_t i = 0;
    const auto rows = [&](auto count) {
      constexpr int R = decltype(count)::value;
      for (; i + R <= tokens; i += R)
        dot_rows<R, F>(l, panel, x.q + i * x.stride, x.stride, x.scale + i, x.sum + i, y + i * to, to);
    };
    rows(std::integral_constant<int, MOST>());
    if constexpr (MOST > 8) rows(std::integral_constant<int, 8>());
    rows(std::integral_constant<int, 4>());
    rows(std::integral_constant<int, 2>());
    rows(std::integral_constant<int, 1>());
  }
}
#endif

// ---- An encoder ----------------------------------------------------------------------------------------------------------

struct Norm {
  Buffer<float> weight, bias;
};

struct Layer {
  std::vector<Linear> products[4];  // of one input each: queries, keys and values; attention's output; up; down
  Norm norms[2];
};

struct Encoder {
  int64_t hidden, heads, head_size, neurons;
  float eps, scaling;
  int32_t activation;
  bool quantized_attention;
  int32_t kernel = AUTOMATIC;
  std::vector<Layer> layers;
  std::string kernels;
  int64_t width() const { return heads * head_size; }
  // Heads are filled up to whole panels of attention's products.
  int64_t head_panel() const { return round_up(head_size, 2 * W); }
};

// What one thread needs for a tile of tokens.
struct Scratch {
  Codes x, context, ffn;
  Buffer<float> y, h, c, p, q, scaled;
  Buffer<uint8_t> tables;
  Buffer<int32_t> sums;
#ifdef HAS_AMX
  Buffer<uint8_t> spread{SPREAD * 2 * 1024};  // tiles of weights as bytes
#endif
  int64_t wide, inner, longest, outputs;  // strides of y, of h, of p and of sums
  Scratch(const Encoder& e, int64_t length)
      : x(e.hidden), context(e.width()), ffn(e.neurons),
        wide(round_up(std::max(3 * e.width(), e.hidden), 64) + 64), inner(round_up(e.neurons, 64) + 64),
        longest(round_up(length, 2 * W)) {
    y = Buffer<float>(TILE * wide);
    h = Buffer<float>(TILE * inner);
    c = Buffer<float>(TILE * round_up(e.width(), W));
    p = Buffer<float>(ROWS * longest);
    q = Buffer<float>(length * e.width());
    scaled = Buffer<float>(round_up(std::max({e.hidden, e.width(), e.neurons}), 64));
    tables = Buffer<uint8_t>(TABLES);
    outputs = std::max({3 * round_up(e.width(), 64), round_up(e.hidden, 64), round_up(e.neurons, 64)});
    sums = Buffer<int32_t>(2 * MOST_TOKENS * outputs);
  }
};

#ifdef HAS_AMX
// Tiles for this thread while it lives; what the thread had configured before comes back afterwards.
struct Tiles {
  alignas(64) uint8_t before[64];
  Tiles() {
    alignas(64) uint8_t config[64] = {};
    config[0] = 1;
    for (int i = 0; i < 8; i++) {
      config[16 + 2 * i] = 64;  // bytes of a row
      config[48 + i] = 16;  // rows
    }
    _tile_storeconfig(before);
    _tile_loadconfig(config);
  }
  ~Tiles() {
    if (before[0]) _tile_loadconfig(before);
    else _tile_release();
  }
  Tiles(const Tiles&) = delete;
};

// 16 outputs x 64 columns as bytes: a row for 4 columns, as VNNI lays them.
template <bool BOTH>
INLINE void spread_tile(const uint64_t* bits, const uint64_t* more, int64_t quads, uint8_t* to) {
  const I one = _mm512_set1_epi8(1);
  for (int64_t k = 0; k < quads; k++) {
    I w = _mm512_maskz_mov_epi8(bits[2 * k], one);
    if (BOTH) w = _mm512_mask_add_epi8(w, more[2 * k], w, one);
    _mm512_store_si512(to + 64 * k, w);
  }
  for (int64_t k = quads; k < 16; k++) _mm512_store_si512(to + 64 * k, _mm512_setzero_si512());
}

// Two tiles of tokens times two of weights: 32 outputs, or both planes of 16.
template <int F>
void multiply_by_tiles(const Linear& l, int64_t tokens, const Codes& x, float* y, int64_t to, Scratch& s) {
  const int64_t quads = (l.columns + 3) / 4, blocks = (quads + 15) / 16, halves = round_up(l.rows, 16) / 16;
  const int64_t step = F == UNEQUAL ? 1 : 2;
  const uint64_t* planes[2] = {};
  for (int p = 0; p < l.planes(); p++) planes[p] = l.words(p);
  for (int64_t half = 0; half < halves; half += step) {
    const int64_t at = half / 2 * quads * 2 + half % 2;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t first = 0; first < blocks; first += SPREAD) {
      const int64_t count = std::min(SPREAD, blocks - first);
      for (int64_t b = 0; b < count; b++) {
        const int64_t k = (first + b) * 16, n = std::min<int64_t>(16, quads - k);
        uint8_t* tile = s.spread + b * 2048;
        for (int v = 0; v < 2; v++, tile += 1024) {
          if (F == UNEQUAL) spread_tile<false>(planes[v] + at + 2 * k, nullptr, n, tile);
          else if (F == BINARY) spread_tile<false>(planes[0] + at + 2 * k + v, nullptr, n, tile);
          else spread_tile<true>(planes[0] + at + 2 * k + v, planes[1] + at + 2 * k + v, n, tile);
        }
      }
      for (int64_t b = 0; b < count; b++) {
        const int8_t* q = x.q + (first + b) * 64;
        _tile_loadd(6, s.spread + b * 2048, 64);
        _tile_loadd(7, s.spread + b * 2048 + 1024, 64);
        _tile_loadd(4, q, x.stride);
        _tile_dpbsud(0, 4, 6);
        _tile_dpbsud(1, 4, 7);
        if (tokens > 16) {
          _tile_loadd(5, q + 16 * x.stride, x.stride);
          _tile_dpbsud(2, 5, 6);
          _tile_dpbsud(3, 5, 7);
        }
      }
    }
    int32_t* sums = s.sums;
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 256, 64);
    _tile_stored(2, sums + 512, 64);
    _tile_stored(3, sums + 768, 64);
    for (int64_t v = 0; v < step; v++) {
      const int64_t n = (half + v) * 16;
      if (n >= l.rows) break;
      const V scale = load(l.scale + n), second = F == UNEQUAL ? load(l.second_scale + n) : scale, bias = load(l.bias + n);
      for (int64_t i = 0; i < tokens; i++) {
        const int32_t* sum = sums + i / 16 * 512 + v * 256 + i % 16 * 16;
        const I s1 = loadi(sum), s2 = F == UNEQUAL ? loadi(sum + 256) : set1i(0);
        store(y + i * to + n, scaled<F>(s1, s2, set1i(x.sum[i]), scale, second, set1(x.scale[i]), bias));
      }
    }
  }
}
#else
struct Tiles {
  Tiles() {}  // nothing to configure
};
#endif

// One form of a kernel's function that takes it as template argument.
template <class F>
void with_form(Form form, F&& call) {
  switch (form) {
    case BINARY: return call(std::integral_constant<int, BINARY>());
    case TERNARY: return call(std::integral_constant<int, TERNARY>());
    case PAIR: return call(std::integral_constant<int, PAIR>());
    case UNEQUAL: return call(std::integral_constant<int, UNEQUAL>());
  }
}

template <int F>
void scale_sums(const Linear& l, int64_t tokens, const int32_t* sums, int64_t stride, int32_t offset, const float* x_scale,
                const int32_t* sum, float* y, int64_t to) {
  const I off = set1i(offset);
  for (int64_t i = 0; i < tokens; i++) {
    const int32_t *s1 = sums + i * stride, *s2 = s1 + MOST_TOKENS * stride;
    for (int64_t n = 0; n < l.rows; n += W)
      store(y + i * to + n,
            scaled<F>(subi(loadi(s1 + n), off), F == BINARY ? off : subi(loadi(s2 + n), off), set1i(sum[i]), load(l.scale + n),
                      F == UNEQUAL ? load(l.second_scale + n) : set1(0.f), set1(x_scale[i]), load(l.bias + n)));
  }
}

// The sums of one plane over a chunk of groups, for the tokens whose tables are built.
template <class T>
void add_plane(const uint8_t* weights, int64_t rows, int64_t groups, int64_t first, int64_t count, int64_t tokens,
               const uint8_t* tables, int32_t* sums, int64_t stride) {
  const int64_t blocks = round_up(rows, T::BYTES) / T::BYTES;
  for (int64_t block = 0; block < blocks;) {
    const int64_t at_once = blocks_at_once<T>(blocks - block);
    const uint8_t* w = weights + (block * groups + first * at_once) / T::SHARED * T::BYTES;
    for (int64_t i = 0; i < tokens; i += 2) {
      const uint8_t* table = tables + i * T::CHUNK * T::STEP;
      int32_t* c = sums + i * stride + block * T::BYTES;
      if (at_once == T::BLOCKS) add_chunk<T, T::BLOCKS>(w, table, count, c, stride);
      else if (at_once == 2) add_chunk<T, 2>(w, table, count, c, stride);
      else add_chunk<T, 1>(w, table, count, c, stride);
    }
    block += at_once;
  }
}

// A few tokens at a time and a chunk of groups at a time, so that the tables stay in the first-level cache.
template <class T>
void multiply_by_tables(const Parts& parts, int64_t tokens, const Codes& x, float* y, int64_t to, Scratch& s) {
  static_assert(T::TOKENS <= MOST_TOKENS && T::TOKENS * T::CHUNK * T::STEP <= TABLES);
  const int64_t groups = table_groups<T>(parts[0].columns);
  const int32_t offset = static_cast<int32_t>(T::OFFSET * groups);
  for (int64_t i = 0; i < tokens; i += T::TOKENS) {
    const int64_t n = std::min<int64_t>(T::TOKENS, tokens - i);
    for (int plane = 0; plane < 2; plane++)
      std::memset(s.sums + plane * MOST_TOKENS * s.outputs, 0, round_up(n, 2) * s.outputs * sizeof(int32_t));
    for (int64_t g = 0; g < groups; g += T::CHUNK) {
      const int64_t count = std::min<int64_t>(T::CHUNK, groups - g);
      for (int64_t t = 0; t < n; t++)
        T::build(x.q + (i + t) * x.stride + g * T::BITS, count, s.tables + t * T::CHUNK * T::STEP);
      int32_t* sums = s.sums;
      for (const Linear& l : parts) {
        for (int plane = 0; plane < l.planes(); plane++)
          add_plane<T>(l.weights[plane], l.rows, groups, g, count, n, s.tables, sums + plane * MOST_TOKENS * s.outputs, s.outputs);
        sums += round_up(l.rows, T::BYTES);
      }
    }
    const int32_t* sums = s.sums;
    float* out = y + i * to;
    for (const Linear& l : parts) {
      const float* scale = x.scale + i;
      const int32_t* sum = x.sum + i;
      with_form(l.form, [&](auto form) {
        scale_sums<decltype(form)::value>(l, n, sums, s.outputs, offset, scale, sum, out, to);
      });
      sums += round_up(l.rows, T::BYTES);
      out += l.rows;
    }
  }
}

// The outputs of Linears that read one input, side by side in y. A part may write behind its rows: the next part, or room
// at the end, comes there. Hence parts are computed in order.
void multiply(const Parts& parts, int64_t tokens, const Codes& x, float* y, int64_t to, Scratch& s) {
  const Kernel kernel = parts[0].kernel;
  if (kernel == TABLE16) return multiply_by_tables<Table16>(parts, tokens, x, y, to, s);
#ifdef HAS_VBMI
  if (kernel == TABLE64) return multiply_by_tables<Table64>(parts, tokens, x, y, to, s);
#endif
  for (const Linear& l : parts) {
    with_form(l.form, [&](auto form) {
      constexpr int F = decltype(form)::value;
#ifdef HAS_AMX
      if (kernel == AMX) return multiply_by_tiles<F>(l, tokens, x, y, to, s);
#endif
#ifdef HAS_VNNI
      multiply_by_dots<F>(l, tokens, x, y, to);
#endif
      (void)F;
    });
    y += l.rows;
  }
}

// Activation function in place, codes, and the outputs of Linears that read these rows. With scales of columns each Linear
// has codes of its own.
template <int A>
void quantize_and_multiply(const Parts& parts, float* x, int64_t stride, int64_t rows, const Codes& codes, float* y, int64_t to,
                           Scratch& s) {
  const int64_t n = parts[0].columns;
  if (std::none_of(parts.begin(), parts.end(), [](const Linear& l) { return static_cast<bool>(l.column); })) {
    quantize_rows<A>(x, stride, rows, n, codes);
    return multiply(parts, rows, codes, y, to, s);
  }
  activate_rows<A>(x, stride, rows, n);
  for (const Linear& l : parts) {
    if (!l.column) quantize_rows<NO_ACTIVATION>(x, stride, rows, n, codes);
    else
      for (int64_t i = 0; i < rows; i++)
        quantize_scaled_row(x + i * stride, l.column, n, s.scaled, codes.q + i * codes.stride, codes.scale + i, codes.sum + i);
    multiply(Parts(l), rows, codes, y, to, s);
    y += l.rows;
  }
}

// y + x, normalized, into x.
void add_norm(float* y, float* x, int64_t n, const Norm& norm, float eps) {
  V total = set1(0.f);
  for (int64_t i = 0; i < n; i += W) {
    const V v = load_part(y + i, n - i) + load_part(x + i, n - i);
    store_part(y + i, v, n - i);
    total = total + v;
  }
  const float mean = sum_of(total) / static_cast<float>(n);
  V squares = set1(0.f);
  for (int64_t i = 0; i < n; i += W) {
    const V d = load_part(y + i, n - i) - set1(mean);
    const V inside = n - i >= W ? d : keep_some(d, n - i, set1(0.f));
    squares = fma(inside, inside, squares);
  }
  const float inverse = 1.f / std::sqrt(sum_of(squares) / static_cast<float>(n) + eps);
  for (int64_t i = 0; i < n; i += W) {
    const V d = (load_part(y + i, n - i) - set1(mean)) * set1(inverse);
    store_part(x + i, fma(d, load(norm.weight + i), load(norm.bias + i)), n - i);
  }
}

// ---- Attention -----------------------------------------------------------------------------------------------------------

// Keys and values of a sequence, head by head, in panels of 2 W columns: keys of 2 W tokens, and 2 W features of values.
struct KeysValues {
  Buffer<float> keys, values;
  KeysValues(const Encoder& e, int64_t length)
      : keys(e.heads * round_up(length, 2 * W) * e.head_size), values(e.heads * length * e.head_panel()) {}
};

// R rows of a times a panel of b: (R, k) x (k, 2 W).
template <int R>
INLINE void times_panel(const float* a, int64_t stride, const float* b, int64_t k, V (&sum)[R][2]) {
  UNROLL for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = set1(0.f);
  for (int64_t i = 0; i < k; i++) {
    const V b0 = load(b + i * 2 * W), b1 = load(b + i * 2 * W + W);
    UNROLL for (int r = 0; r < R; r++) {
      const V x = set1(a[r * stride + i]);
      sum[r][0] = fma(x, b0, sum[r][0]);
      sum[r][1] = fma(x, b1, sum[r][1]);
    }
  }
}

// The context of R queries of one head.  q: (R, width).  c: (R, stride), at the head's place.
template <int R>
void attend(const Encoder& e, const float* q, int64_t head, int64_t length, const KeysValues& kv, Scratch& s, float* c,
            int64_t stride) {
  const int64_t size = e.head_size, padded = round_up(length, 2 * W), longest = s.longest;
  const float* keys = kv.keys + head * padded * size;
  const float* values = kv.values + head * length * e.head_panel();
  const V hidden = set1(-INFINITY);
  V largest[R];
  UNROLL for (int r = 0; r < R; r++) largest[r] = hidden;
  for (int64_t j = 0; j < length; j += 2 * W) {
    V sum[R][2];
    times_panel<R>(q, e.width(), keys + j * size, size, sum);
    UNROLL for (int v = 0; v < 2; v++) {
      const int64_t left = length - j - v * W;
      UNROLL for (int r = 0; r < R; r++) {
        V score = sum[r][v] * set1(e.scaling);
        if (left < W) score = left > 0 ? keep_some(score, left, hidden) : hidden;
        largest[r] = larger(largest[r], score);
        store(s.p + r * longest + j + v * W, score);
      }
    }
  }
  float inverse[R];
  for (int r = 0; r < R; r++) {
    float* p = s.p + r * longest;
    const V most = set1(largest_of(largest[r]));
    V total = set1(0.f);
    for (int64_t j = 0; j < padded; j += W) {
      const V score = load(p + j);
      V x = exponential(score - most);
      if (length - j < W) x = length > j ? keep_some(x, length - j, set1(0.f)) : set1(0.f);
      total = total + x;
      store(p + j, x);
    }
    inverse[r] = 1.f / sum_of(total);
    if (e.quantized_attention) {
      for (int64_t j = 0; j < padded; j += W) store(p + j, load(p + j) * set1(inverse[r]));
      quantize_dequantize(p, padded);
      inverse[r] = 1.f;
    }
  }
  for (int64_t d = 0; d < size; d += 2 * W) {
    V sum[R][2];
    times_panel<R>(s.p, longest, values + d * length, length, sum);
    UNROLL for (int v = 0; v < 2; v++) {
      const int64_t left = size - d - v * W;
      if (left > 0) UNROLL for (int r = 0; r < R; r++) store_part(c + r * stride + d + v * W, sum[r][v] * set1(inverse[r]), left);
    }
  }
}

// Queries, keys and values of rows t0 … t0 + n of a sequence.
void project(const Encoder& e, const Layer& l, float* x, int64_t n, int64_t t0, int64_t length, Scratch& s, KeysValues& kv) {
  const int64_t A = e.width(), size = e.head_size, panel = e.head_panel(), padded = round_up(length, 2 * W);
  quantize_and_multiply<NO_ACTIVATION>(l.products[0], x, e.hidden, n, s.x, s.y, s.wide, s);
  for (int64_t i = 0; i < n; i++) {
    const int64_t t = t0 + i;
    float* y = s.y + i * s.wide;
    if (e.quantized_attention)
      for (int64_t part = 0; part < 3 * e.heads; part++) quantize_dequantize(y + part * size, size);
    std::memcpy(s.q + t * A, y, A * sizeof(float));
    for (int64_t h = 0; h < e.heads; h++) {
      const float *key = y + A + h * size, *value = y + 2 * A + h * size;
      float* k = kv.keys + h * padded * size + t / (2 * W) * (2 * W) * size + t % (2 * W);
      for (int64_t d = 0; d < size; d++) k[d * 2 * W] = key[d];
      float* v = kv.values + h * length * panel;
      for (int64_t d = 0; d < size; d += 2 * W)
        std::memcpy(v + d * length + t * 2 * W, value + d, std::min<int64_t>(2 * W, size - d) * sizeof(float));
    }
  }
}

// What follows attention, and attention, for the same rows.
void finish_layer(const Encoder& e, const Layer& l, float* x, int64_t n, int64_t t0, int64_t length, Scratch& s,
                  const KeysValues& kv) {
  const int64_t A = e.width(), H = e.hidden, stride = round_up(A, W);
  for (int64_t h = 0; h < e.heads; h++) {
    int64_t i = 0;
    const auto rows = [&](auto count) {
      constexpr int R = decltype(count)::value;
      for (; i + R <= n; i += R)
        attend<R>(e, s.q + (t0 + i) * A + h * e.head_size, h, length, kv, s, s.c + i * stride + h * e.head_size, stride);
    };
    rows(std::integral_constant<int, ROWS>());
    if constexpr (ROWS > 8) rows(std::integral_constant<int, 8>());
    rows(std::integral_constant<int, 4>());
    rows(std::integral_constant<int, 2>());
    rows(std::integral_constant<int, 1>());
  }
  quantize_and_multiply<NO_ACTIVATION>(l.products[1], s.c, stride, n, s.context, s.y, s.wide, s);
  for (int64_t i = 0; i < n; i++) add_norm(s.y + i * s.wide, x + i * H, H, l.norms[0], e.eps);
  quantize_and_multiply<NO_ACTIVATION>(l.products[2], x, H, n, s.x, s.h, s.inner, s);
  switch (e.activation) {
    case GELU: quantize_and_multiply<GELU>(l.products[3], s.h, s.inner, n, s.ffn, s.y, s.wide, s); break;
    case RELU: quantize_and_multiply<RELU>(l.products[3], s.h, s.inner, n, s.ffn, s.y, s.wide, s); break;
    default: quantize_and_multiply<GELU_TANH>(l.products[3], s.h, s.inner, n, s.ffn, s.y, s.wide, s);
  }
  for (int64_t i = 0; i < n; i++) add_norm(s.y + i * s.wide, x + i * H, H, l.norms[1], e.eps);
}

void forward(const Encoder& e, float* hidden, const int64_t* offsets, int64_t sequences, int threads) {
  std::vector<int64_t> order(sequences);
  int64_t longest = 0;
  for (int64_t b = 0; b < sequences; b++) {
    order[b] = b;
    longest = std::max(longest, offsets[b + 1] - offsets[b]);
  }
  if (longest == 0) return;
  const auto length_of = [&](int64_t b) { return offsets[b + 1] - offsets[b]; };
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return length_of(a) > length_of(b); });
  const bool share = sequences < threads;
  std::vector<Scratch> scratch;
  scratch.reserve(threads);
  for (int i = 0; i < threads; i++) scratch.emplace_back(e, longest);
  std::vector<KeysValues> kv;  // shared: of two layers in turn, so that one barrier a layer is enough
  kv.reserve(share ? 2 : threads);
  for (int i = 0; i < (share ? 2 : threads); i++) kv.emplace_back(e, longest);
#pragma omp parallel num_threads(threads)
  {
    const int64_t id = omp_get_thread_num(), team = omp_get_num_threads();
    Scratch& s = scratch[id];
    const Tiles tiles;
    if (!share) {
#pragma omp for schedule(dynamic, 1)
      for (int64_t b = 0; b < sequences; b++) {
        const int64_t length = length_of(order[b]);
        float* x = hidden + offsets[order[b]] * e.hidden;
        for (const Layer& l : e.layers) {
          for (int64_t t = 0; t < length; t += TILE)
            project(e, l, x + t * e.hidden, std::min(TILE, length - t), t, length, s, kv[id]);
          for (int64_t t = 0; t < length; t += TILE)
            finish_layer(e, l, x + t * e.hidden, std::min(TILE, length - t), t, length, s, kv[id]);
        }
      }
    } else {
      for (int64_t b = 0; b < sequences; b++) {
        const int64_t length = length_of(b), begin = length * id / team, end = length * (id + 1) / team;
        float* x = hidden + offsets[b] * e.hidden;
        for (size_t i = 0; i < e.layers.size(); i++) {
          KeysValues& shared = kv[i % 2];
          for (int64_t t = begin; t < end; t += TILE)
            project(e, e.layers[i], x + t * e.hidden, std::min(TILE, end - t), t, length, s, shared);
#pragma omp barrier
          for (int64_t t = begin; t < end; t += TILE)
            finish_layer(e, e.layers[i], x + t * e.hidden, std::min(TILE, end - t), t, length, s, shared);
        }
#pragma omp barrier
      }
    }
  }
}

// ---- Weights as on disk --------------------------------------------------------------------------------------------------

// The planes of ternary codes, of which four share a byte as code + 1: whether a code is >= 0, and whether it is > 0.
void split_planes(const uint8_t* packed, int64_t rows, int64_t columns, std::vector<uint8_t> (&planes)[2]) {
  const int64_t from = (columns + 3) / 4, to = (columns + 7) / 8;
  for (auto& plane : planes) plane.assign(rows * to, 0);
  for (int64_t n = 0; n < rows; n++)
    for (int64_t k = 0; k < columns; k++) {
      const int digit = packed[n * from + k / 4] >> (2 * (k % 4)) & 3;
      for (int p = 0; p < 2; p++) planes[p][n * to + k / 8] |= static_cast<uint8_t>((digit > p) << (k % 8));
    }
}

void lay_out(Linear& l, Kernel kernel) {
  l.kernel = kernel;
  for (int p = 0; p < l.planes(); p++) {
    if (kernel == TABLE16) l.weights[p] = lay_out_for_tables<Table16>(l.bits[p], l.rows, l.columns);
#ifdef HAS_VBMI
    if (kernel == TABLE64) l.weights[p] = lay_out_for_tables<Table64>(l.bits[p], l.rows, l.columns);
#endif
#ifdef HAS_VNNI
    if (kernel == VNNI || kernel == AMX) l.weights[p] = lay_out_for_dots(l.bits[p], l.rows, l.columns);
#endif
  }
}

// Seconds that a product takes for a tile of tokens: the shortest of a few.
double seconds_of(const Encoder& e, const std::vector<Linear>& parts) {
  Scratch s(e, 1);
  Codes codes(parts[0].columns);
  for (int64_t i = 0; i < TILE; i++)
    for (int64_t k = 0; k < parts[0].columns; k++) codes.q[i * codes.stride + k] = static_cast<int8_t>((31 * k + 17 * i) % 255 - 127);
  const int64_t stride = std::max(s.wide, s.inner);
  Buffer<float> y(TILE * stride);
  double shortest = 1e30;
  for (int i = 0; i < 6; i++) {
    const auto begin = std::chrono::steady_clock::now();
    multiply(parts, TILE, codes, y, stride, s);
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    shortest = std::min(shortest, taken.count());
  }
  return shortest;
}

// The fastest kernel for a product of this form and size on this processor; tried once in a process.
Kernel fastest(const Encoder& e, std::vector<Linear>& parts) {
  if (e.kernel != AUTOMATIC) return static_cast<Kernel>(e.kernel);
  if (!is_available(VNNI)) return TABLE16;
  static std::mutex one_at_a_time;
  static std::map<std::tuple<Form, int64_t, int64_t, size_t>, Kernel> known;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  const auto key = std::make_tuple(parts[0].form, parts[0].rows, parts[0].columns, parts.size());
  if (const auto found = known.find(key); found != known.end()) return found->second;
  Kernel best = VNNI;
  double shortest = 1e30;
  const Tiles tiles;
  for (const Kernel kernel : {VNNI, TABLE64, AMX}) {
    if (!is_available(kernel)) continue;
    for (Linear& l : parts) lay_out(l, kernel);
    const double taken = seconds_of(e, parts);
    if (taken < shortest) best = kernel, shortest = taken;
  }
  return known[key] = best;
}

// Lay the weights of a product out for this processor, once all its parts are set. Their bits are freed at once, so that
// no second copy of all the weights is ever held.
void lay_out(const Encoder& e, std::vector<Linear>& parts) {
  Kernel kernel = AUTOMATIC;
  for (const Linear& l : parts) {
    if (l.rows == 0) return;
    if (l.kernel != AUTOMATIC) kernel = l.kernel;
  }
  if (kernel == AUTOMATIC) kernel = fastest(e, parts);
  for (Linear& l : parts) {
    if (l.bits[0].empty()) continue;
    lay_out(l, kernel);
    for (auto& bits : l.bits) std::vector<uint8_t>().swap(bits);
  }
}

struct Part {
  int product, place;
};
constexpr Part PARTS[] = {{0, 0}, {0, 1}, {0, 2}, {1, 0}, {2, 0}, {3, 0}};

void sizes_of(const Encoder& e, int32_t part, int64_t* rows, int64_t* columns) {
  *rows = part < 3 ? e.width() : part == 4 ? e.neurons : e.hidden;
  *columns = part == 3 ? e.width() : part == 5 ? e.neurons : e.hidden;
}

constexpr int64_t SLACK = 64;  // outputs that kernels may read or write behind the last one

Buffer<float> spread(const float* values, int64_t count, int64_t rows) {
  Buffer<float> all(round_up(rows, 64) + SLACK);
  for (int64_t n = 0; n < rows && count > 0; n++) all[n] = values[count == 1 ? 0 : n];
  return all;
}

}  // namespace

// ---- The C interface. Functions return 0, or -1 for arguments that do not fit and -2 where memory is exhausted. -----------

extern "C" {

// The heads' scores are scaled by `scaling`. quantized_attention: queries, keys, values and probabilities at 8 bits too.
void* bitkd_new(int64_t layers, int64_t hidden, int64_t heads, int64_t head_size, int64_t neurons, float eps,
                int32_t activation, float scaling, int32_t quantized_attention) {
  if (layers < 1 || hidden < 1 || heads < 1 || head_size < 1 || neurons < 1 || activation < 0 || activation > 2) return nullptr;
  try {
    auto e = std::make_unique<Encoder>();
    e->hidden = hidden, e->heads = heads, e->head_size = head_size, e->neurons = neurons;
    e->eps = eps, e->activation = activation, e->scaling = scaling, e->quantized_attention = quantized_attention != 0;
    e->layers.resize(layers);
    for (Layer& layer : e->layers)
      for (int i = 0; i < 4; i++) layer.products[i].resize(i == 0 ? 3 : 1);
    return e.release();
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

void bitkd_free(void* encoder) { delete static_cast<Encoder*>(encoder); }

// Compute every product by one kernel (0: the fastest for each). Before any Linear is set.
int bitkd_use(void* encoder, int32_t kernel) {
  if (kernel < AUTOMATIC || kernel > AMX || !is_available(kernel)) return -1;
  static_cast<Encoder*>(encoder)->kernel = kernel;
  return 0;
}

// part: 0 query, 1 key, 2 value, 3 attention's output, 4 up, 5 down.  bits: 1, or 2 for ternary codes.  packed: see
// bitkd/quant/packing.py.  scales: how many, 1 or one for each row.  second: the other half of a split weight, or null.
// column: the scales of the columns, or null.
int bitkd_set_linear(void* encoder, int64_t layer, int32_t part, int32_t bits, const uint8_t* packed, const float* scale,
                     int64_t scales, const uint8_t* second, const float* second_scale, const float* column, const float* bias) {
  Encoder& e = *static_cast<Encoder*>(encoder);
  if (layer < 0 || layer >= static_cast<int64_t>(e.layers.size()) || part < 0 || part > 5) return -1;
  int64_t rows, columns;
  sizes_of(e, part, &rows, &columns);
  if ((bits != 1 && bits != 2) || (second && bits != 1) || (scales != 1 && scales != rows)) return -1;
  try {
    Linear l;
    l.rows = rows, l.columns = columns;
    const int64_t bytes = rows * ((columns + 7) / 8);
    if (bits == 2) {
      l.form = TERNARY;
      split_planes(packed, rows, columns, l.bits);
    } else {
      l.bits[0].assign(packed, packed + bytes);
    }
    std::vector<float> mean(scale, scale + scales), half(scales, 0.f);
    if (second) {
      l.bits[1].assign(second, second + bytes);
      bool equal = true;
      for (int64_t i = 0; i < scales; i++) {
        mean[i] = (scale[i] + second_scale[i]) / 2.f;
        half[i] = (scale[i] - second_scale[i]) / 2.f;
        equal = equal && half[i] == 0.f;
      }
      l.form = equal ? PAIR : UNEQUAL;
    }
    l.scale = spread(mean.data(), scales, rows);
    l.second_scale = spread(half.data(), scales, rows);
    l.bias = spread(bias, bias ? rows : 0, rows);
    if (column) l.column = spread(column, columns, columns);
    std::vector<Linear>& parts = e.layers[layer].products[PARTS[part].product];
    parts[PARTS[part].place] = std::move(l);
    lay_out(e, parts);
    return 0;
  } catch (const std::bad_alloc&) {
    return -2;
  }
}

// which: 0 behind attention, 1 behind the FFN.
int bitkd_set_norm(void* encoder, int64_t layer, int32_t which, const float* weight, const float* bias) {
  Encoder& e = *static_cast<Encoder*>(encoder);
  if (layer < 0 || layer >= static_cast<int64_t>(e.layers.size()) || which < 0 || which > 1) return -1;
  try {
    e.layers[layer].norms[which].weight = spread(weight, e.hidden, e.hidden);
    e.layers[layer].norms[which].bias = spread(bias, e.hidden, e.hidden);
    return 0;
  } catch (const std::bad_alloc&) {
    return -2;
  }
}

// Everything must have been set.
int bitkd_finish(void* encoder) {
  Encoder& e = *static_cast<Encoder*>(encoder);
  const char* const names[] = {"queries, keys, values", "attention output", "up", "down"};
  try {
    for (const Layer& layer : e.layers) {
      if (!layer.norms[0].weight || !layer.norms[1].weight) return -1;
      for (const auto& parts : layer.products)
        for (const Linear& l : parts)
          if (!l.weights[0]) return -1;
    }
    for (int i = 0; i < 4; i++)
      e.kernels += std::string(i ? "; " : "") + names[i] + ": " + KERNEL_NAMES[e.layers[0].products[i][0].kernel];
    return 0;
  } catch (const std::bad_alloc&) {
    return -2;
  }
}

// The kernel of each product of the first layer.
const char* bitkd_kernels(void* encoder) { return static_cast<Encoder*>(encoder)->kernels.c_str(); }

// hidden: (tokens, hidden), replaced by the encoder's output.  offsets: where each sequence begins, and the end.
// Any number of threads may call this for one encoder.
int bitkd_forward(void* encoder, float* hidden, const int64_t* offsets, int64_t sequences, int32_t threads) {
  try {
    forward(*static_cast<Encoder*>(encoder), hidden, offsets, sequences, std::max(1, threads));
    return 0;
  } catch (const std::bad_alloc&) {
    return -2;
  }
}

// One product, without activation function: y = (tokens, outputs).  product: 0 queries, keys and values side by side,
// 1 attention's output, 2 up, 3 down.
int bitkd_linear(void* encoder, int64_t layer, int32_t product, const float* x, int64_t tokens, float* y, int32_t threads) {
  const Encoder& e = *static_cast<Encoder*>(encoder);
  if (layer < 0 || layer >= static_cast<int64_t>(e.layers.size()) || product < 0 || product > 3) return -1;
  try {
    const std::vector<Linear>& parts = e.layers[layer].products[product];
    const int64_t columns = parts[0].columns, outputs = product == 0 ? 3 * e.width() : parts[0].rows;
    threads = std::max(1, threads);
    std::vector<Scratch> scratch;
    scratch.reserve(threads);
    for (int i = 0; i < threads; i++) scratch.emplace_back(e, 1);
    std::vector<Codes> codes;
    codes.reserve(threads);
    for (int i = 0; i < threads; i++) codes.emplace_back(columns);
    const int64_t stride = round_up(outputs, 64) + SLACK;
    Buffer<float> out(threads * TILE * stride), in(threads * TILE * columns);
#pragma omp parallel num_threads(threads)
    {
      const Tiles tiles;
      const int id = omp_get_thread_num();
      float *tile = in + id * TILE * columns, *result = out + id * TILE * stride;
#pragma omp for schedule(static)
      for (int64_t t = 0; t < tokens; t += TILE) {
        const int64_t n = std::min(TILE, tokens - t);
        std::memcpy(tile, x + t * columns, n * columns * sizeof(float));
        quantize_and_multiply<NO_ACTIVATION>(parts, tile, columns, n, codes[id], result, stride, scratch[id]);
        for (int64_t i = 0; i < n; i++) std::memcpy(y + (t + i) * outputs, result + i * stride, outputs * sizeof(float));
      }
    }
    return 0;
  } catch (const std::bad_alloc&) {
    return -2;
  }
}

}  // extern "C"
