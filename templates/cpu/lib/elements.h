/* What the functions of elements need of C. */
#define FLOAT_OF bits_f32
#define BITS_OF f32_bits
#define el_sqrt sqrtf
#define el_floor floorf
#define el_sin sinf
#define el_cos cosf
#define el_pow powf
#define el_fmod fmodf
{% include "common/elements.h" %}
