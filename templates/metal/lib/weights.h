/* Eight stored values as float32; scales are applied to the sums. */

INLINE void unpack_bf16(uint4 raw, thread float *w) {
  for (int i = 0; i < 4; ++i) {
    w[2 * i] = as_type<float>(raw[i] << 16);
    w[2 * i + 1] = as_type<float>(raw[i] & 0xffff0000u);
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
