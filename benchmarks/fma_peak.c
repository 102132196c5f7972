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

// A named variable each: an array may end up in memory, and then it is the stores that are timed.
// The empty asm keeps the chains apart, or the compiler might vectorise or fold them.
#define EACH(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
#define START(i) vector a##i = shift * (float)i;
#define STEP(i)                \
  a##i = a##i * scale + shift; \
  __asm__("" : IN_REGISTER(a##i));
#define ADD(i) sum += a##i;

// Does `rounds` rounds of CHAINS independent vector FMAs; returns the flop done.
double fma_chains(long rounds, float* out) {
  vector scale, shift, sum;
  for (int lane = 0; lane < (int)(BYTES / sizeof(float)); ++lane) {
    scale[lane] = 0.999f;
    shift[lane] = 0.001f;
    sum[lane] = 0.0f;
  }
  EACH(START)
  for (long round = 0; round < rounds; ++round) {
    EACH(STEP)
  }
  EACH(ADD)
  *out = sum[0];
  return 2.0 * CHAINS * (BYTES / sizeof(float)) * (double)rounds;
}
