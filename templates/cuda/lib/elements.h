/* What the functions of elements need of CUDA. */
#define el_sqrt sqrtf
#define el_floor floorf
#define el_sin sinf
#define el_cos cosf
#define el_pow powf
#define el_fmod fmodf
{% include "common/elements.h" %}
