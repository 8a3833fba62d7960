/*
 * What somebody does who registered space and did not keep it: all labels again, as fast as one core of this machine can (docs/protocol/proofs.md, HM-PoSpace v1).
 * One label needs the one before it, so more cores do not help. SHA extensions, the schedule of the two blocks of a label worked out once, parents fetched
 * ahead: nothing is known to us that would be faster on a processor.
 *
 *   regenerate BYTES ITERATIONS SEED(64 hex digits) -> the milliseconds of each layer, then the last label of layer 3
 */
#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct {
  uint32_t w[8];
} label;

static const uint32_t K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
    0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
    0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
    0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
    0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
    0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint64_t mix(uint64_t layer, uint64_t i, uint64_t salt) {
  uint64_t z = ((i | layer << 40 | salt << 48) + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ z >> 27) * 0x94d049bb133111ebull;
  return z ^ z >> 31;
}

static uint64_t far_of(uint64_t layer, uint64_t i) {
  uint64_t r = mix(layer, i, 0), e = 1ull << ((r & 0xffffffff) % (64 - (uint64_t)__builtin_clzll(i)));
  uint64_t d = e + (r >> 32) % e;
  if (d > i) d = 1 + (r >> 32) % i;
  return i - d;
}

/* The sixteen words of a block and what follows from them, round constants added. */
static void schedule(const label *a, const label *b, __m128i out[16]) {
  __m128i m[4] = {_mm_loadu_si128((const __m128i *)a->w), _mm_loadu_si128((const __m128i *)(a->w + 4)),
                  _mm_loadu_si128((const __m128i *)b->w), _mm_loadu_si128((const __m128i *)(b->w + 4))};
  for (int i = 0; i < 16; i++) {
    out[i] = _mm_add_epi32(m[i & 3], _mm_loadu_si128((const __m128i *)(K + 4 * i)));
    if (i < 12) {
      __m128i next = _mm_sha256msg1_epu32(m[i & 3], m[(i + 1) & 3]);
      next = _mm_add_epi32(next, _mm_alignr_epi8(m[(i + 3) & 3], m[(i + 2) & 3], 4));
      m[i & 3] = _mm_sha256msg2_epu32(next, m[(i + 3) & 3]);
    }
  }
}

static void layer_of(int layer, uint64_t n, int iterations, const uint32_t seed[8], label *current, const label *below) {
  static const label zero;
  for (uint64_t i = 0; i < n; i++) {
    if (i + 12 < n) {
      __builtin_prefetch(&current[far_of(layer, i + 12)]);
      if (layer > 1) __builtin_prefetch(&below[mix(layer, i + 12, 1) % n]);
    }
    const label *before = i ? &current[i - 1] : &zero;
    const label *far = i ? &current[far_of(layer, i)] : &zero;
    const label *under = layer > 1 ? &below[mix(layer, i, 1) % n] : &zero;
    __m128i even[16], odd[16];
    schedule(before, far, even);
    schedule(under, before, odd);
    uint32_t s[8];
    memcpy(s, seed, 32);
    s[0] ^= (uint32_t)i;
    s[1] ^= (uint32_t)layer;
    __m128i abef = _mm_set_epi32((int)s[0], (int)s[1], (int)s[4], (int)s[5]);
    __m128i cdgh = _mm_set_epi32((int)s[2], (int)s[3], (int)s[6], (int)s[7]);
    for (int step = 0; step < iterations; step++) {
      const __m128i *w = step & 1 ? odd : even;
      const __m128i abef0 = abef, cdgh0 = cdgh;
#pragma GCC unroll 16
      for (int j = 0; j < 16; j++) {
        cdgh = _mm_sha256rnds2_epu32(cdgh, abef, w[j]);
        abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(w[j], 0x0e));
      }
      abef = _mm_add_epi32(abef, abef0);
      cdgh = _mm_add_epi32(cdgh, cdgh0);
    }
    uint32_t x[4], y[4];
    _mm_storeu_si128((__m128i *)x, abef);
    _mm_storeu_si128((__m128i *)y, cdgh);
    current[i] = (label){{x[3], x[2], y[3], y[2], x[1], x[0], y[1], y[0]}};
  }
}

static double now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

int main(int argc, char **argv) {
  if (argc != 4 || strlen(argv[3]) != 64) return 2;
  const uint64_t n = strtoull(argv[1], 0, 10) / 32;
  const int iterations = atoi(argv[2]);
  uint8_t bytes[32];
  uint32_t seed[8];
  for (int i = 0; i < 32; i++) sscanf(argv[3] + 2 * i, "%2hhx", &bytes[i]);
  memcpy(seed, bytes, 32);
  label *one = malloc(n * 32), *two = malloc(n * 32);
  if (!one || !two) return 1;
  /* Pages are there before the clock runs. */
  memset(one, 1, n * 32);
  memset(two, 1, n * 32);
  for (int layer = 1; layer <= 3; layer++) {
    double from = now_ms();
    layer_of(layer, n, iterations, seed, layer & 1 ? one : two, layer & 1 ? two : one);
    printf("%.1f ", now_ms() - from);
  }
  const uint8_t *last = (const uint8_t *)&one[n - 1];
  for (int i = 0; i < 32; i++) printf("%02x", last[i]);
  printf("\n");
  return 0;
}
