// The rate of fused multiply-adds with everything in registers: what no kernel can exceed.
// Compiled for the machine at hand (-march=native); fma_peak.py runs it, one call a thread.

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define CHAINS 12  // more than latency (4) x units (2); all registers of AVX2 but four

#if defined(__aarch64__)
#define IN_REGISTER "+w"
#else
#define IN_REGISTER "+x"
#endif

typedef float vector __attribute__((vector_size(BYTES)));

// Does `rounds` rounds of CHAINS independent vector FMAs; returns the flop done.
double fma_chains(long rounds, float* out) {
  vector a[CHAINS], scale, shift;
  for (int lane = 0; lane < (int)(BYTES / sizeof(float)); ++lane) {
    scale[lane] = 0.999f;
    shift[lane] = 0.001f;
  }
  for (int chain = 0; chain < CHAINS; ++chain) a[chain] = shift * (float)chain;
  for (long round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int chain = 0; chain < CHAINS; ++chain) {
      a[chain] = a[chain] * scale + shift;
      // Keeps the chains apart: without it the compiler may vectorise or fold them.
      __asm__("" : IN_REGISTER(a[chain]));
    }
  }
  vector sum = a[0];
  for (int chain = 1; chain < CHAINS; ++chain) sum += a[chain];
  *out = sum[0];
  return 2.0 * CHAINS * (BYTES / sizeof(float)) * (double)rounds;
}
