/* Stored integers and 8-bit floats as pairs of bfloat16, which holds them exactly; scales are applied to the sums. */

/* 128 as a pair: a 7-bit number put into its mantissa gives 128 + number. */
#define BF16_128 0x43004300u
#define BF16_ONE 0x3f803f80u
#define BF16_SIGN 0x80008000u
#define BF16_2_TO_120 0x7b807b80u

/* Four bytes q0 … q3 as the pairs (q0 - 128, q1 - 128), (q2 - 128, q3 - 128). The top bit decides what is taken off. */
INLINE void unpack_int8(u32 word, u32 *pair) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const u32 q = __byte_perm(word, 0, i ? 0x4342 : 0x4140);
    const u32 off = masked_not_or(q, 0x00800080u, BF16_128 | BF16_SIGN);
    pair[i] = fma_bf16x2(masked_or(q, 0x007f007fu, BF16_128), BF16_ONE, off);
  }
}

/* A word of eight nibbles as four pairs q - zero; `off` is the pair -(128 + zero). */
INLINE void unpack_int4(u32 word, u32 off, u32 *pair) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
    pair[i] = fma_bf16x2(masked_or(word >> 4 * i, 0x000f000fu, BF16_128), BF16_ONE, off);
}

/* Four e4m3 bytes as two pairs. Sign, exponent and mantissa move to their places in a bfloat16; 2^120 makes up for the other
   bias, also below the smallest normal number. */
INLINE void unpack_fp8(u32 word, u32 *pair) {
  pair[0] = fma_bf16x2((widen_bytes<0>(word) << 4) & 0x87f087f0u, BF16_2_TO_120, BF16_SIGN);
  pair[1] = fma_bf16x2((widen_bytes<1>(word) << 4) & 0x87f087f0u, BF16_2_TO_120, BF16_SIGN);
}

/* One e4m3 number: in a float16's places it is 2^8 too small. */
INLINE float fp8_to_f32(u32 q) { return f16_to_f32((u16)((q & 0x80) << 8 | (q & 0x7f) << 7)) * 256.0f; }

/* The pair -(128 + zero) for a zero point below 16. */
INLINE u32 nibble_offset(u32 zero) { return zero * 0x00010001u + (BF16_128 | BF16_SIGN); }

/* A pair of whole numbers times a scale, rounded once. */
INLINE u32 scale_pair(u32 pair, float scale) {
  return pack_bf16(__uint_as_float(pair << 16) * scale, __uint_as_float(pair & 0xffff0000u) * scale);
}
