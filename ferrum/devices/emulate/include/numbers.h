/* 16-bit and 8-bit floats as bits. */
#pragma once

static inline float emu_float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
static inline uint32_t emu_bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

static inline float emu_from_bf16(uint16_t bits) { return emu_float_of((uint32_t)bits << 16); }
/* Round to nearest even; NaN becomes the device's 0x7fff. */
static inline uint16_t emu_to_bf16(float x) {
  const uint32_t bits = emu_bits_of(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#if defined(__FLT16_MAX__)
typedef _Float16 EmuHalf;
#else
typedef __fp16 EmuHalf; /* gcc before 13 on aarch64 */
#endif
static inline float emu_from_f16(uint16_t bits) {
  EmuHalf h;
  memcpy(&h, &bits, 2);
  return (float)h;
}
static inline uint16_t emu_to_f16(float x) {
  const EmuHalf h = (EmuHalf)x;
  uint16_t bits;
  memcpy(&bits, &h, 2);
  return bits;
}

/* e4m3 (OCP 8-bit floating point, 2023): bias 7, no infinities, 0x7f is NaN. */
static inline float emu_from_e4m3(uint8_t bits) {
  const int exponent = bits >> 3 & 15, mantissa = bits & 7;
  if ((bits & 0x7f) == 0x7f) return emu_float_of(0x7fffffff);
  const float size = exponent ? ldexpf((float)(8 + mantissa), exponent - 10) : ldexpf((float)mantissa, -9);
  return bits & 0x80 ? -size : size;
}
/* Round to nearest even; what is larger than 448 becomes 448. */
static inline uint8_t emu_to_e4m3(float x) {
  const uint8_t sign = emu_bits_of(x) >> 31 ? 0x80 : 0;
  const float size = fabsf(x);
  if (size != size) return 0x7f;
  if (size >= 464.0f) return sign | 0x7e;
  int exponent;
  frexpf(size, &exponent); /* size = f * 2^exponent, 0.5 <= f < 1 */
  if (size == 0.0f || exponent < -5) exponent = -5; /* subnormal steps are 2^-9 */
  int units = (int)rintf(ldexpf(size, 4 - exponent)); /* of 2^(exponent - 4), at most 16 */
  if (units == 16) units = 8, ++exponent;
  if (exponent > 9) return sign | 0x7e;
  return units < 8 ? (uint8_t)(sign | units) : (uint8_t)(sign | (exponent + 6) << 3 | (units - 8));
}
