/* Eight stored values as float32; scales are applied to the sums. */

INLINE void unpack_bf16(uint4 raw, thread float *w) {
  for (int i = 0; i < 4; ++i) {
    w[2 * i] = as_type<float>(raw[i] << 16);
    w[2 * i + 1] = as_type<float>(raw[i] & 0xffff0000u);
  }
}

/* An e4m3 number: in the places of a half its exponent's bias is 8 too small. Halves keep what is below their normal numbers. */
INLINE float fp8_to_f32(u32 q) { return (float)as_type<half>((u16)((q & 0x80) << 8 | (q & 0x7f) << 7)) * 256.0f; }

INLINE void unpack_fp8(u32 low, u32 high, thread float *w) {
  for (int i = 0; i < 4; ++i) {
    w[i] = fp8_to_f32(low >> 8 * i & 255);
    w[4 + i] = fp8_to_f32(high >> 8 * i & 255);
  }
}

INLINE void unpack_int8(u32 low, u32 high, thread float *w) {
  for (int i = 0; i < 4; ++i) {
    w[i] = (float)((int)(low >> 8 * i & 255) - 128);
    w[4 + i] = (float)((int)(high >> 8 * i & 255) - 128);
  }
}

/* Even values lie in the low half of the word, odd ones in the high half. */
INLINE void unpack_int4(u32 word, int zero, thread float *w) {
  for (int i = 0; i < 4; ++i) {
    w[2 * i] = (float)((int)(word >> 4 * i & 15) - zero);
    w[2 * i + 1] = (float)((int)(word >> (16 + 4 * i) & 15) - zero);
  }
}
